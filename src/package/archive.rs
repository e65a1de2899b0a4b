//! Strict reader of the archive inside a package: a POSIX ustar stream of flat, regular files.
//!
//! The reader rejects everything that two tar readers could interpret differently: extended
//! headers, links, devices, prefixes, base-256 numbers, hidden bytes, and padding other than zeros.
//! Format: <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_06>.
//!
//! Invariant: [`Archive::next_member`] returns `None` only after exactly two zero blocks and the
//! end of the source.

use std::io::{self, Read};

use super::manifest::MemberName;

/// Block size in bytes. Headers and contents are padded to a multiple of it.
pub(super) const BLOCK: usize = 512;

/// Parsed header of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ArchiveMember {
    pub(super) name: MemberName,
    /// Length of the content in bytes.
    pub(super) size: u64,
}

/// Violation of the archive format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArchiveFault {
    #[error("the header checksum is wrong")]
    Checksum,
    #[error("the header is not POSIX ustar (pre-POSIX and GNU formats are not accepted)")]
    Magic,
    #[error("entry type {0:?} is not allowed: a package contains only regular files, type '0'")]
    Type(char),
    #[error(
        "the name must be one path component of at most 96 letters, digits, '.', '_' and '-', \
         a letter or digit first"
    )]
    Name,
    #[error("the header field {0} must contain octal digits and end with NUL or a space")]
    Number(&'static str),
    #[error("the header field {0} must be empty")]
    NotEmpty(&'static str),
    #[error("the header field {0} has bytes after its end")]
    HiddenBytes(&'static str),
    #[error("the content is not padded with zeros")]
    Padding,
    #[error("the archive ends inside a header or a member")]
    Incomplete,
    #[error("the archive does not end with two zero blocks")]
    NoEnd,
    #[error("bytes follow the two zero blocks at the end of the archive")]
    AfterEnd,
}

/// Error of [`Archive::next_member`].
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The archive breaks the format. `member` is escaped, so it is printable for any header.
    #[error("{fault}")]
    Refused { member: Option<String>, fault: ArchiveFault },
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
}

/// Reader of an archive's members in order. [`Read::read`] returns the content of the current
/// member.
pub(super) struct Archive<R> {
    source: R,
    /// Name of the current member, for messages.
    member: Option<String>,
    /// Unread bytes of the current member's content.
    content: u64,
    /// Bytes between the current member's content and the next header.
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, member: None, content: 0, padding: 0 }
    }

    /// Returns the next member, or `None` at the end. Skips unread content of the current member.
    pub(super) fn next_member(&mut self) -> Result<Option<ArchiveMember>, ArchiveError> {
        io::copy(self, &mut io::sink()).map_err(ArchiveError::Read)?;
        if self.content > 0 {
            return Err(self.error(ArchiveFault::Incomplete));
        }
        self.skip_padding()?;
        let Some(block) = self.read_block()? else {
            self.member = None;
            return Err(self.error(ArchiveFault::NoEnd));
        };
        if is_zero(&block) {
            return self.read_end().map(|()| None);
        }
        self.member = Some(printable_name(&block));
        let entry = parse_header(&block).map_err(|fault| self.error(fault))?;
        self.content = entry.size;
        // The size field has at most 11 octal digits, so it is below 2^33 and this cannot overflow.
        self.padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
        Ok(Some(entry))
    }

    pub(super) fn get_ref(&self) -> &R {
        &self.source
    }

    pub(super) fn into_inner(self) -> R {
        self.source
    }

    fn error(&self, fault: ArchiveFault) -> ArchiveError {
        ArchiveError::Refused { member: self.member.clone(), fault }
    }

    fn skip_padding(&mut self) -> Result<(), ArchiveError> {
        let mut padding = Vec::new();
        let mut source = (&mut self.source).take(self.padding);
        source.read_to_end(&mut padding).map_err(ArchiveError::Read)?;
        if (padding.len() as u64) < self.padding {
            return Err(self.error(ArchiveFault::Incomplete));
        }
        if !is_zero(&padding) {
            return Err(self.error(ArchiveFault::Padding));
        }
        self.padding = 0;
        Ok(())
    }

    /// Reads a whole block; returns `None` at the end of the source.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        match read_full(&mut self.source, &mut block).map_err(ArchiveError::Read)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(self.error(ArchiveFault::Incomplete)),
        }
    }

    fn read_end(&mut self) -> Result<(), ArchiveError> {
        self.member = None;
        match self.read_block()? {
            Some(block) if is_zero(&block) => {}
            _ => return Err(self.error(ArchiveFault::NoEnd)),
        }
        match read_full(&mut self.source, &mut [0]).map_err(ArchiveError::Read)? {
            0 => Ok(()),
            _ => Err(self.error(ArchiveFault::AfterEnd)),
        }
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.source.read(&mut buffer[..wanted])?;
        self.content -= read as u64;
        Ok(read)
    }
}

/// Reads until `buffer` is full or the source ends; returns the number of bytes read.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Returns the escaped name of a header that is not checked yet.
fn printable_name(block: &[u8; BLOCK]) -> String {
    let until_nul = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        field[..end].escape_ascii().to_string()
    };
    let (prefix, name) = (until_nul(&block[345..500]), until_nul(&block[..100]));
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

fn parse_header(block: &[u8; BLOCK]) -> Result<ArchiveMember, ArchiveFault> {
    // The sum is computed with the checksum field as spaces, so it does not cover that field. The
    // field must therefore have the exact spelling that every current writer uses: otherwise bits
    // of it could change unnoticed.
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
    let sum = sum + 8 * u32::from(b' ');
    if block[148..156] != *format!("{sum:06o}\0 ").as_bytes() {
        return Err(ArchiveFault::Checksum);
    }
    if block[257..265] != *b"ustar\x0000" {
        return Err(ArchiveFault::Magic);
    }
    if block[156] != b'0' {
        return Err(ArchiveFault::Type(block[156].into()));
    }
    let number = |field, range| octal(&block[range]).ok_or(ArchiveFault::Number(field));
    let text = |field, range| terminated(&block[range]).ok_or(ArchiveFault::HiddenBytes(field));
    // Checked but not used: the store sets its own owner, mode and times.
    number("mode", 100..108)?;
    number("uid", 108..116)?;
    number("gid", 116..124)?;
    number("mtime", 136..148)?;
    text("uname", 265..297)?;
    text("gname", 297..329)?;
    for (field, range) in [("linkname", 157..257), ("prefix", 345..500), ("reserved", 500..512)] {
        if !is_zero(&block[range]) {
            return Err(ArchiveFault::NotEmpty(field));
        }
    }
    for (field, range) in [("devmajor", 329..337), ("devminor", 337..345)] {
        let field_bytes = &block[range];
        if !is_zero(field_bytes) && octal(field_bytes) != Some(0) {
            return Err(ArchiveFault::NotEmpty(field));
        }
    }
    let name =
        std::str::from_utf8(text("name", 0..100)?).map_err(|_not_text| ArchiveFault::Name)?;
    let name = name.parse().map_err(|_cause| ArchiveFault::Name)?;
    Ok(ArchiveMember { name, size: number("size", 124..136)? })
}

/// Parses octal digits followed by at least one NUL or space up to the end of the field.
///
/// A field has at most 12 bytes, so the value fits a `u64`.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.iter().position(|byte| !matches!(byte, b'0'..=b'7'))?;
    let (digits, end) = field.split_at(digits);
    if digits.is_empty() || !end.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value << 3 | u64::from(digit - b'0')))
}

/// Returns the bytes before the first NUL if only NULs follow it.
fn terminated(field: &[u8]) -> Option<&[u8]> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let (text, rest) = field.split_at(end);
    is_zero(rest).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::package::fixture::Builder;

    /// Returns all members with their contents.
    fn read(archive: &[u8]) -> Result<Vec<(ArchiveMember, Vec<u8>)>, ArchiveError> {
        let mut archive = Archive::new(archive);
        let mut members = Vec::new();
        while let Some(entry) = archive.next_member()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content).map_err(ArchiveError::Read)?;
            members.push((entry, content));
        }
        Ok(members)
    }

    fn fault(archive: &[u8]) -> (Option<String>, ArchiveFault) {
        match read(archive) {
            Err(ArchiveError::Refused { member, fault }) => (member, fault),
            other => panic!("expected a fault, found {other:?}"),
        }
    }

    fn builder() -> Builder {
        Builder::new("m", "1", b"weights")
    }

    #[test]
    fn members_are_read_in_order() {
        let builder = builder();
        let members = read(&builder.archive()).unwrap();
        assert_eq!(members.len(), builder.entries.len());
        for ((entry, content), written) in members.iter().zip(&builder.entries) {
            assert_eq!(content, &written.content);
            assert_eq!(entry.size, content.len() as u64);
        }
        assert_eq!(members[3].0.name.as_str(), "model.safetensors");
    }

    #[test]
    fn unread_content_is_skipped() {
        let archive = builder().archive();
        let mut archive = Archive::new(&archive[..]);
        let mut count = 0;
        while archive.next_member().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 4);
    }

    #[test]
    fn header_fault_names_the_member() {
        let config = || Some("config.json".to_owned());
        type Case<'a> = (&'a str, usize, &'a [u8], Option<String>, ArchiveFault);
        let cases: [Case<'_>; 30] = [
            ("parent", 0, b"../x\0\0\0\0\0\0\0", Some("../x".into()), ArchiveFault::Name),
            ("absolute", 0, b"/etc/passwd", Some("/etc/passwd".into()), ArchiveFault::Name),
            ("directory", 0, b"dir/conf.js", Some("dir/conf.js".into()), ArchiveFault::Name),
            ("backslash", 0, b"a\\b.json\0\0\0", Some("a\\\\b.json".into()), ArchiveFault::Name),
            ("newline", 0, b"a\nb.json\0\0\0", Some("a\\nb.json".into()), ArchiveFault::Name),
            (
                "not text",
                0,
                b"\xff\xfe\0\0\0\0\0\0\0\0\0",
                Some("\\xff\\xfe".into()),
                ArchiveFault::Name,
            ),
            ("hidden", 0, b".hidden\0\0\0\0", Some(".hidden".into()), ArchiveFault::Name),
            ("no name", 0, &[0; 11], Some(String::new()), ArchiveFault::Name),
            ("too long", 0, &[b'a'; 97], Some("a".repeat(97)), ArchiveFault::Name),
            ("after NUL", 50, b"x", config(), ArchiveFault::HiddenBytes("name")),
            ("hard link", 156, b"1", config(), ArchiveFault::Type('1')),
            ("symbolic link", 156, b"2", config(), ArchiveFault::Type('2')),
            ("device", 156, b"3", config(), ArchiveFault::Type('3')),
            ("directory", 156, b"5", config(), ArchiveFault::Type('5')),
            ("pipe", 156, b"6", config(), ArchiveFault::Type('6')),
            ("contiguous", 156, b"7", config(), ArchiveFault::Type('7')),
            ("PAX", 156, b"x", config(), ArchiveFault::Type('x')),
            ("PAX global", 156, b"g", config(), ArchiveFault::Type('g')),
            ("GNU long name", 156, b"L", config(), ArchiveFault::Type('L')),
            ("before POSIX", 156, b"\0", config(), ArchiveFault::Type('\0')),
            ("link name", 157, b"x", config(), ArchiveFault::NotEmpty("linkname")),
            ("prefix", 345, b"..", Some("../config.json".into()), ArchiveFault::NotEmpty("prefix")),
            ("device", 329, b"0000001\0", config(), ArchiveFault::NotEmpty("devmajor")),
            ("after all fields", 511, b"x", config(), ArchiveFault::NotEmpty("reserved")),
            ("GNU", 257, b"ustar  \0", config(), ArchiveFault::Magic),
            (
                "base-256 size",
                124,
                b"\x80\0\0\0\0\0\0\0\0\0\0\x02",
                config(),
                ArchiveFault::Number("size"),
            ),
            ("decimal", 124, b"00000000008\0", config(), ArchiveFault::Number("size")),
            ("unterminated", 124, b"000000000002", config(), ArchiveFault::Number("size")),
            ("leading space", 100, b"    644\0", config(), ArchiveFault::Number("mode")),
            ("empty", 136, &[0; 12], config(), ArchiveFault::Number("mtime")),
        ];
        for (what, offset, bytes, member, expected) in cases {
            let mut builder = builder();
            builder.entries[1].set(offset, bytes).seal();
            assert_eq!(fault(&builder.archive()), (member, expected), "{what}");
        }
    }

    #[test]
    fn common_tar_headers_are_accepted() {
        let cases: [(usize, &[u8]); 5] = [
            (329, b"0000000\x000000000\0"), // GNU tar
            (265, b"root\0"),
            (297, b"wheel\0"),
            (116, b"001750 \0"),
            (124, b"00000000002 "),
        ];
        for (offset, bytes) in cases {
            let mut builder = builder();
            builder.entries[1].set(offset, bytes).seal();
            assert!(read(&builder.archive()).is_ok(), "{bytes:?} at {offset}");
        }
    }

    #[test]
    fn checksum_padding_and_end_are_checked() {
        let model = || Some("model.safetensors".to_owned());
        type Change = fn(&mut Builder);
        let cases: [(Change, (Option<String>, ArchiveFault)); 11] = [
            (|b| b.entries[3].header[148] ^= 1, (model(), ArchiveFault::Checksum)),
            (
                |b| b.entries[3].header[0] ^= 1,
                (Some("lodel.safetensors".into()), ArchiveFault::Checksum),
            ),
            (|b| b.entries[3].header[155] = 0, (model(), ArchiveFault::Checksum)),
            (|b| b.entries[3].padding[0] = 1, (model(), ArchiveFault::Padding)),
            (|b| b.end.clear(), (None, ArchiveFault::NoEnd)),
            (|b| b.end.truncate(BLOCK), (None, ArchiveFault::NoEnd)),
            (|b| b.end[BLOCK] = 1, (None, ArchiveFault::NoEnd)),
            (|b| b.end.push(0), (None, ArchiveFault::AfterEnd)),
            (|b| b.end.extend([0; BLOCK]), (None, ArchiveFault::AfterEnd)),
            (
                |b| {
                    b.entries[3].resize(1 << 30).seal();
                },
                (model(), ArchiveFault::Incomplete),
            ),
            (|b| b.end = vec![0; 7], (model(), ArchiveFault::Incomplete)),
        ];
        for (index, (change, expected)) in cases.into_iter().enumerate() {
            let mut builder = builder();
            change(&mut builder);
            assert_eq!(fault(&builder.archive()), expected, "case {index}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            drop(read(&bytes));
        }

        /// Checks that a flipped bit is detected by the checksum, the padding or the end check, or
        /// changes only content. Digests protect the content.
        #[test]
        fn flipped_bit_is_refused_or_changes_only_content(
            index in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let good = builder().archive();
            let mut bad = good.clone();
            bad[index.index(good.len())] ^= 1_u8 << bit;
            if let Ok(members) = read(&bad) {
                let original = read(&good).unwrap();
                prop_assert!(members != original);
                prop_assert!(members.iter().map(|m| &m.0).eq(original.iter().map(|m| &m.0)));
            }
        }

        /// Checks that a member has a safe flat name and the announced length, for any header with
        /// a valid checksum.
        #[test]
        fn sealed_headers_give_only_flat_names(
            edits in proptest::collection::vec((0..BLOCK, any::<u8>()), 1..6),
        ) {
            let mut builder = builder();
            for (offset, byte) in edits {
                builder.entries[1].set(offset, &[byte]);
            }
            builder.entries[1].seal();
            if let Ok(members) = read(&builder.archive()) {
                for (entry, content) in members {
                    prop_assert!(!entry.name.as_str().contains(['/', '\\', '\0']));
                    prop_assert!(!entry.name.as_str().starts_with('.'));
                    prop_assert_eq!(entry.size, content.len() as u64);
                }
            }
        }
    }
}
