use std::fs;

/// The most memory that this process held at once since a moment, where the system says that: on Linux.
#[derive(Debug)]
pub(crate) struct PeakMemory {
    /// Whether the system began to count anew.
    is_counted: bool,
}

impl PeakMemory {
    /// From now on.
    pub(crate) fn start() -> Self {
        // Linux then takes what is resident now for the peak so far (proc_pid_clear_refs(5)).
        Self { is_counted: fs::write("/proc/self/clear_refs", "5").is_ok() }
    }

    /// In bytes, of main memory; `None` where it is not known.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let status = self.is_counted.then(|| fs::read_to_string("/proc/self/status").ok()).flatten()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_before_is_forgotten_and_what_is_held_for_a_moment_is_not() {
        const LARGE: u64 = 1 << 30;
        let peak = PeakMemory::start();
        let before = peak.bytes().expect("Linux says it");
        // Written, so that it is resident and not only asked for.
        drop(std::hint::black_box(vec![1_u8; LARGE as usize]));
        let after = peak.bytes().expect("Linux says it");
        assert!(after >= before + LARGE / 2, "{before} to {after}");
        let again = PeakMemory::start().bytes().expect("Linux says it");
        assert!(again <= after - LARGE / 2, "{after} to {again}");
    }
}
