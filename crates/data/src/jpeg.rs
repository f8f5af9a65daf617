//! Whether a JPEG file is whole. Decoders, ours too, paint what is missing of a photograph grey.

const END: [u8; 2] = [0xff, 0xd9];

/// What the markers of a file say about its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end marker is there.
    Marked,
    /// It is not, but all scans the picture is made of have begun. The last one may break off; see [`continuations`].
    Open,
    /// Scans are missing, or the file breaks off before the first.
    Missing,
}

/// Walks from marker to marker (ITU-T T.81, annex B).
///
/// The scans are all there when every coefficient of every component was sent to its last bit: in one scan each where the
/// picture is sequential, in several where it is progressive.
pub(crate) fn end(file: &[u8]) -> End {
    // For every component that the frame names, the coefficients that have been sent whole.
    let mut components: Vec<(u8, u64)> = Vec::new();
    let mut at = 2;
    loop {
        let Some(marker) = next_marker(file, &mut at) else {
            let is_complete = !components.is_empty() && components.iter().all(|&(_, sent)| sent == u64::MAX);
            return if is_complete { End::Open } else { End::Missing };
        };
        match marker {
            0xd9 => return End::Marked,
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let Some(length) = file.get(at..at + 2).map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])))
        else {
            return End::Missing;
        };
        let Some(segment) = file.get(at + 2..at + length.max(2)) else { return End::Missing };
        at += length.max(2);
        match marker {
            // Frames of all kinds, without tables of Huffman (c4) and arithmetic codes (cc) and the reserved c8.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                components = segment.get(6..).unwrap_or_default().chunks_exact(3).map(|part| (part[0], 0)).collect();
            }
            0xda => scan(segment, &mut components),
            _ => {}
        }
    }
}

/// Notes which coefficients the scan of this header sends to their last bit.
fn scan(header: &[u8], components: &mut [(u8, u64)]) {
    let count = header.first().map_or(0, |&count| usize::from(count));
    let Some(&[first, last, bits]) = header.get(1 + 2 * count..).and_then(|rest| rest.first_chunk::<3>()) else {
        return;
    };
    if bits & 0x0f != 0 || first > last || last > 63 {
        return;
    }
    let band = (u64::MAX >> (63 - last)) & (u64::MAX << first);
    for named in header[1..].chunks_exact(2).take(count) {
        for (_, sent) in components.iter_mut().filter(|(name, _)| *name == named[0]) {
            *sent |= band;
        }
    }
}

/// The next marker from `at` on, which is put behind it; scan data, with its stuffed zeros and restarts, is passed over.
fn next_marker(file: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += file.get(*at..)?.iter().position(|&byte| byte == 0xff)?;
        while *file.get(*at)? == 0xff {
            *at += 1;
        }
        let marker = file[*at];
        *at += 1;
        if !matches!(marker, 0 | 0xd0..=0xd7) {
            return Some(marker);
        }
    }
}

/// A file without an end marker, continued with `tail` bytes of false data: a decoder that needs none of them makes the
/// same picture of all, one that lacks data makes different ones. The first has no such bytes.
///
/// A decoder drops a row of blocks that it cannot finish, and would show the same of all without the rest of that row: the
/// tail must be long enough for every block of the picture.
///
/// Zeros at the file's end are taken off first: some programs lay out a file in zeros before they download it.
pub(crate) fn continuations(file: &[u8], tail: usize) -> [Vec<u8>; 4] {
    let end = file.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let file = &file[..end];
    let file = file.strip_suffix(&[0xff]).unwrap_or(file);
    let with = |byte: u8, length: usize| [file, &vec![byte; length], &END].concat();
    // Zeros are a code of every table. The others are one of most, and differ from it and from each other.
    [with(0, 0), with(0, tail), with(0xaa, tail), with(0x55, tail)]
}
