//! Writes the archive of a package: POSIX ustar inside one zstd frame.
//!
//! Every field that could reveal where, when or by whom an archive was made has a fixed value, so
//! that the same members give the same bytes. Format: POSIX.1-2017, pax, "ustar Interchange
//! Format", <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_06>.

use std::io::{self, Write};

use zstd::stream::write::Encoder;

const BLOCK: usize = 512;
/// End of an archive: two blocks of zeros.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Largest size that eleven octal digits can represent.
const MAX_SIZE: u64 = 0o777_7777_7777;
const MAX_NAME: usize = 100;
/// Bytes that are passed to the compressor between two progress reports.
const CHUNK: usize = 1 << 20;

/// Compression level. Weights are close to noise, so a higher level costs time and saves nothing:
/// all-MiniLM-L6-v2 in f32 takes 1 s and 82.75 MB at level 12, and 40 s and 82.76 MB at level 19.
/// In int8 the two levels differ by 0.01 %.
const LEVEL: i32 = 12;

/// Writes `members`, as pairs of name and contents, as one compressed archive; returns `out`.
///
/// `progress` is called with the number of archive bytes that were compressed, and the total
/// number.
///
/// # Errors
/// When `out` fails, and for a name over 100 bytes or contents of 8 GiB or more, which the format
/// cannot represent.
pub(super) fn write_archive<W: Write>(
    members: &[(String, &[u8])],
    progress: &dyn Fn(u64, u64),
    out: W,
) -> io::Result<W> {
    let mut total = END.len() as u64;
    for (_, contents) in members {
        total += (BLOCK + contents.len() + padding(contents.len()).len()) as u64;
    }
    let mut encoder = Encoder::new(out, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(Some(total))?;
    let mut done = 0;
    for (name, contents) in members {
        let header = header(name, contents.len() as u64)?;
        for chunk in std::iter::once(&header[..])
            .chain(contents.chunks(CHUNK))
            .chain([padding(contents.len())])
        {
            encoder.write_all(chunk)?;
            done += chunk.len() as u64;
            progress(done, total);
        }
    }
    encoder.write_all(&END)?;
    progress(total, total);
    encoder.finish()
}

/// Returns the zeros that fill the last block of contents of `length` bytes.
fn padding(length: usize) -> &'static [u8] {
    &END[..length.next_multiple_of(BLOCK) - length]
}

/// Returns the header of a regular file.
fn header(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
    if name.len() > MAX_NAME || size > MAX_SIZE {
        let message = format!("{name}: {size} bytes cannot be written to a ustar archive");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let size = format!("{size:011o}\0");
    let fields: [(usize, &[u8]); 11] = [
        (0, name.as_bytes()),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, size.as_bytes()),
        (136, b"00000000000\0"),
        // The checksum is computed with spaces in its own field.
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (329, b"0000000\0"),
        (337, b"0000000\0"),
    ];
    let mut header = [0; BLOCK];
    for (offset, field) in fields {
        header[offset..offset + field.len()].copy_from_slice(field);
    }
    let checksum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::package::zstd_frame::MAX_WINDOW_LOG;

    fn archive(members: &[(String, &[u8])]) -> Vec<u8> {
        write_archive(members, &|_, _| {}, Vec::new()).unwrap()
    }

    #[test]
    fn large_archive_keeps_window_limit() {
        let contents = vec![0; 40 << 20];
        let packed = archive(&[("a".to_owned(), &contents)]);
        // The frame is not a single segment; that would make the window as large as the archive.
        assert_eq!(packed[4] & 0b0010_0000, 0);
        // Five bits for the exponent less 10, three bits for the mantissa.
        let (exponent, mantissa) = (u32::from(packed[5] >> 3) + 10, packed[5] & 7);
        assert!(exponent + u32::from(mantissa > 0) <= MAX_WINDOW_LOG, "{exponent} {mantissa}");
    }

    #[test]
    fn header_is_posix_without_writer_metadata() {
        let header = header("config.json", 0o1750).unwrap();
        let mut expected = vec![0; BLOCK];
        expected[..11].copy_from_slice(b"config.json");
        expected[100..124].copy_from_slice(b"0000644\x000000000\x000000000\0");
        expected[124..148].copy_from_slice(b"00000001750\x0000000000000\0");
        expected[148..157].copy_from_slice(b"011350\0 0");
        expected[257..265].copy_from_slice(b"ustar\x0000");
        expected[329..345].copy_from_slice(b"0000000\x000000000\0");
        assert_eq!(header.as_slice(), expected);
    }

    #[test]
    fn archive_layout_is_exact() {
        for length in [0, 1, 511, 512, 513] {
            let contents = vec![7; length];
            let packed = archive(&[("a".to_owned(), &contents), ("b".to_owned(), b"x")]);
            let tar = zstd::decode_all(&packed[..]).unwrap();
            let blocks = length.div_ceil(BLOCK);
            assert_eq!(tar.len(), (1 + blocks + 2 + 2) * BLOCK, "{length}");
            assert_eq!(tar[..BLOCK], header("a", length as u64).unwrap());
            assert_eq!(tar[BLOCK..BLOCK + length], contents);
            assert_eq!(tar[(1 + blocks) * BLOCK..][..BLOCK], header("b", 1).unwrap());
            assert!(tar[(2 + blocks) * BLOCK + 1..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn frame_has_size_and_checksum() {
        let mut packed = archive(&[("a".to_owned(), &[7; 1000])]);
        let size = (BLOCK + 1024 + END.len()) as u64;
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&packed).ok(), Some(Some(size)));
        // The last four bytes of a frame are the checksum. Without it, this change would be
        // unnoticed.
        *packed.last_mut().unwrap() ^= 1;
        assert!(zstd::decode_all(&packed[..]).is_err());
    }

    #[test]
    fn progress_ends_at_announced_total() {
        let last = Cell::new((0, 0));
        let advance = |done, total| {
            assert!(done >= last.get().0 && (last.get().1 == 0 || total == last.get().1));
            last.set((done, total));
        };
        write_archive(&[("a".to_owned(), &[7; 3 << 20])], &advance, io::sink()).unwrap();
        assert_eq!(last.get(), (last.get().1, (3 << 20) + 512 + 1024));
    }

    #[test]
    fn overlong_name_or_size_is_refused() {
        assert!(header(&"n".repeat(100), MAX_SIZE).is_ok());
        assert!(header(&"n".repeat(101), 0).is_err());
        assert!(header("n", MAX_SIZE + 1).is_err());
    }
}
