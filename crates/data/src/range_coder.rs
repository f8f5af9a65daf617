//! An adaptive binary range coder (Martin 1979, in the carryless form of LZMA) over bytes.

/// How a byte's bits are distributed, learnt as they come: a binary tree with a probability at every node.
#[derive(Clone, Debug)]
pub(crate) struct SymbolModel {
    nodes: [Probability; 256],
}

impl Default for SymbolModel {
    fn default() -> Self {
        Self { nodes: [Probability { fast: 1 << 15, slow: 1 << 15 }; 256] }
    }
}

/// How likely a bit is 0, in 65536ths: the mean of one estimate that learns fast and one that is exact in the long run.
#[derive(Clone, Copy, Debug)]
struct Probability {
    fast: u16,
    slow: u16,
}

impl Probability {
    const FAST: u32 = 4;
    const SLOW: u32 = 7;

    /// The part of `range` that stands for a 0. Neither estimate can reach 0 or 65536, so both parts hold something.
    fn share_of(self, range: u32) -> u32 {
        (range >> 16) * ((u32::from(self.fast) + u32::from(self.slow)) >> 1)
    }

    fn learn(&mut self, bit: bool) {
        let step = |estimate: &mut u16, shift: u32| {
            if bit {
                *estimate -= *estimate >> shift;
            } else {
                *estimate += (u16::MAX - *estimate) >> shift;
            }
        };
        step(&mut self.fast, Self::FAST);
        step(&mut self.slow, Self::SLOW);
    }
}

/// Below this, the range is widened by a byte.
const NARROW: u32 = 1 << 24;

/// Turns bytes into fewer bytes.
#[derive(Debug)]
pub(crate) struct Encoder {
    low: u64,
    range: u32,
    /// The byte before those that a carry would run through.
    held: Option<u8>,
    /// How many bytes of 255 follow it.
    full: usize,
    output: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { low: 0, range: u32::MAX, held: None, full: 0, output: Vec::new() }
    }

    /// Encodes a byte and learns from it.
    pub(crate) fn encode(&mut self, model: &mut SymbolModel, byte: u8) {
        let mut node = 1;
        for shift in (0..8).rev() {
            let bit = byte >> shift & 1 == 1;
            let probability = &mut model.nodes[node];
            let share = probability.share_of(self.range);
            if bit {
                self.low += u64::from(share);
                self.range -= share;
            } else {
                self.range = share;
            }
            probability.learn(bit);
            node = node << 1 | usize::from(bit);
            while self.range < NARROW {
                self.range <<= 8;
                self.shift_out();
            }
        }
    }

    /// Writes the highest byte of `low`, once no carry can change it any more.
    fn shift_out(&mut self) {
        let carry = (self.low >> 32) as u8;
        if self.low as u32 >= 0xFF00_0000 && carry == 0 {
            self.full += 1;
        } else {
            self.output.extend(self.held.map(|byte| byte.wrapping_add(carry)));
            self.output.extend(std::iter::repeat_n(0xFF_u8.wrapping_add(carry), self.full));
            self.full = 0;
            self.held = Some((self.low >> 24) as u8);
        }
        self.low = (self.low & 0x00FF_FFFF) << 8;
    }

    /// All bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift_out();
        }
        self.output
    }
}

/// Turns the bytes of an [`Encoder`] back. Beyond their end it reads zeros: any bytes decode to something.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    code: u32,
    range: u32,
    input: std::slice::Iter<'a, u8>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u32::MAX, input: input.iter() };
        for _ in 0..4 {
            decoder.shift_in();
        }
        decoder
    }

    fn shift_in(&mut self) {
        self.code = self.code << 8 | u32::from(self.input.next().copied().unwrap_or(0));
    }

    /// The next byte; the model must have learnt what the encoder's had.
    pub(crate) fn decode(&mut self, model: &mut SymbolModel) -> u8 {
        let mut node = 1;
        while node < 256 {
            let probability = &mut model.nodes[node];
            let share = probability.share_of(self.range);
            let bit = self.code >= share;
            if bit {
                self.code -= share;
                self.range -= share;
            } else {
                self.range = share;
            }
            probability.learn(bit);
            node = node << 1 | usize::from(bit);
            while self.range < NARROW {
                self.range <<= 8;
                self.shift_in();
            }
        }
        node as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(bytes: &[u8]) -> usize {
        let (mut encoder, mut model) = (Encoder::new(), SymbolModel::default());
        for &byte in bytes {
            encoder.encode(&mut model, byte);
        }
        let coded = encoder.finish();
        let (mut decoder, mut model) = (Decoder::new(&coded), SymbolModel::default());
        assert!(bytes.iter().all(|&byte| decoder.decode(&mut model) == byte));
        coded.len()
    }

    #[test]
    fn bytes_come_back_and_frequent_ones_cost_little() {
        // At worst eight bits of 0.1 % doubt each, 16 bytes; the rest is what learning that costs.
        let coded = round_trip(&[7; 10_000]);
        assert!(coded < 150, "{coded}");
        // Long runs of the unlikely symbol make carries run through many bytes of 255.
        for rare in [0, 255] {
            let bytes: Vec<u8> = (0..20_000).map(|at: u32| if at % 997 < 9 { rare } else { 255 - rare }).collect();
            assert!(round_trip(&bytes) < 2000);
        }
        // Four equally frequent values in no order: two bits each, and a little for learning.
        let mut state = 1_u32;
        let bytes: Vec<u8> = (0..40_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 30) as u8 * 60
            })
            .collect();
        let coded = round_trip(&bytes);
        assert!((10_000..10_400).contains(&coded), "{coded}");
    }
}
