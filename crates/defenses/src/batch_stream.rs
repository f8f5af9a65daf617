use patchdoor_data::{ImageSet, stream};
use patchdoor_kernels::Kernels;
use patchdoor_train::{Batch, BatchAssembler};
use rand::seq::SliceRandom;

/// Batches of one size without end: pass after pass through a set, each in an order of its own; what fills no batch at the end of
/// a pass is left out.
pub(crate) struct BatchStream<'a, B: Kernels> {
    images: BatchAssembler<'a, B>,
    count: usize,
    batch_size: usize,
    seed: u64,
    /// Names the random streams of the orders.
    name: &'static str,
    pass: usize,
    order: Vec<usize>,
    taken: usize,
}

impl<'a, B: Kernels> BatchStream<'a, B> {
    /// A set that is smaller than a batch is one.
    pub(crate) fn new(set: &'a ImageSet, batch_size: usize, seed: u64, name: &'static str, device: &B::Device) -> Self {
        let (images, count) = (BatchAssembler::new(set, device), set.len());
        Self { images, count, batch_size: batch_size.min(count), seed, name, pass: 0, order: Vec::new(), taken: 0 }
    }

    pub(crate) fn next(&mut self, device: &B::Device) -> Batch<B> {
        if self.taken + self.batch_size > self.order.len() {
            self.order = (0..self.count).collect();
            self.order.shuffle(&mut stream(self.seed, &format!("{}/{}", self.name, self.pass)));
            (self.pass, self.taken) = (self.pass + 1, 0);
        }
        let batch = self.images.batch(&self.order[self.taken..][..self.batch_size], device);
        self.taken += self.batch_size;
        batch
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};

    use super::*;
    use crate::testing::shapes;

    #[test]
    fn a_pass_visits_no_image_twice_and_the_next_one_has_another_order() {
        // Ten images, four at a time: two batches a pass, and two images left out.
        let set = shapes(10);
        let mut batches = BatchStream::<Flex>::new(&set, 4, 0, "defense/test", &FlexDevice);
        let mut labels = || batches.next(&FlexDevice).labels.into_data().iter::<i64>().collect::<Vec<_>>();
        let passes = [0, 1].map(|_| [labels(), labels()].concat());
        for pass in &passes {
            // The ten images have ten labels.
            let mut seen = pass.clone();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 8);
        }
        assert_ne!(passes[0], passes[1]);
        // A batch that asks for more than there is takes all.
        let mut all = BatchStream::<Flex>::new(&set, 64, 0, "defense/test", &FlexDevice);
        assert_eq!(all.next(&FlexDevice).labels.dims(), [10]);
    }
}
