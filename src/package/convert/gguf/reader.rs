//! Parses the structure of a GGUF file: its metadata and the places of its tensors.
//!
//! The format is that of
//! <https://github.com/ggml-org/ggml/blob/v0.9.4/docs/gguf.md>. Versions 2 and 3 in little-endian
//! order are read.
//!
//! Invariants:
//! 1. Nothing is copied: names, texts, lists and tensors are parts of the file. The memory is that
//!    of one small entry for each key and tensor, of which the file has at least 13 bytes.
//! 2. Every length is checked before it is used. The tensors are inside the file, and together not
//!    longer than it, so that a small file cannot describe large weights.

use std::collections::BTreeMap;

use super::super::file::quoted;
use super::blocks::BlockFormat;

/// Description of a fault of the file, to be printed after its name.
pub(super) type Fault = String;

const MAGIC: &[u8; 4] = b"GGUF";
/// Places of the tensors are multiples of this number if the file does not state another one.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Maximum number of keys and of tensors. A language model with 100 layers has 1,000 tensors.
const MAX_ENTRIES: u64 = 1 << 16;
/// Maximum number of axes of a tensor, the limit of ggml.
const MAX_AXES: u32 = 4;

/// Value of a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'f> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'f str),
    List(List<'f>),
}

/// List of values of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<'f> {
    kind: Kind,
    /// Number of values.
    pub(super) count: usize,
    bytes: &'f [u8],
}

/// Kind of a value, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(number: u32) -> Result<Self, Fault> {
        Ok(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::List,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            other => return Err(format!("it has a value of the unknown kind {other}")),
        })
    }

    /// Returns the number of bytes of a value, or `None` if it varies.
    const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::List => None,
        }
    }
}

/// Tensor in the file.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor<'f> {
    pub(super) format: BlockFormat,
    /// Lengths of the axes, the one of adjacent values last.
    pub(super) shape: Vec<usize>,
    /// Blocks of all rows.
    pub(super) bytes: &'f [u8],
}

/// Parsed file.
#[derive(Debug)]
pub(super) struct Gguf<'f> {
    metadata: BTreeMap<&'f str, Value<'f>>,
    pub(super) tensors: BTreeMap<&'f str, StoredTensor<'f>>,
}

fn damaged() -> Fault {
    "it is damaged or incomplete: copy the file again".to_owned()
}

/// Unread part of the file.
struct Cursor<'f> {
    bytes: &'f [u8],
}

impl<'f> Cursor<'f> {
    fn take(&mut self, count: usize) -> Result<&'f [u8], Fault> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.take_array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.take_array()?))
    }

    /// Reads a number of bytes or values in memory.
    fn length(&mut self) -> Result<usize, Fault> {
        usize::try_from(self.u64()?).map_err(|_too_large| damaged())
    }

    fn text(&mut self) -> Result<&'f str, Fault> {
        let length = self.length()?;
        str::from_utf8(self.take(length)?).map_err(|_invalid| damaged())
    }

    fn value(&mut self, kind: Kind) -> Result<Value<'f>, Fault> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.take_array()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.take_array()?).into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.take_array()?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.take_array()?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.take_array()?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.take_array()?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.take_array()?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.take_array()?)),
            Kind::Bool => Value::Bool(self.take_array()? != [0]),
            Kind::Text => Value::Text(self.text()?),
            Kind::List => Value::List(self.list()?),
        })
    }

    fn list(&mut self) -> Result<List<'f>, Fault> {
        let kind = Kind::of(self.u32()?)?;
        let count = self.length()?;
        let start = self.bytes;
        match kind.size() {
            Some(size) => drop(self.take(count.checked_mul(size).ok_or_else(damaged)?)?),
            None if kind == Kind::Text => {
                // A text has at least the eight bytes of its length.
                if count > self.bytes.len() / size_of::<u64>() {
                    return Err(damaged());
                }
                for _ in 0..count {
                    self.text()?;
                }
            }
            None => return Err("it has a list of lists, which no model needs".to_owned()),
        }
        Ok(List { kind, count, bytes: &start[..start.len() - self.bytes.len()] })
    }

    /// Reads the description of a tensor: its name, its shape, and its format with the position of
    /// its values.
    fn tensor(&mut self) -> Result<(&'f str, Vec<usize>, u32, u64), Fault> {
        let name = self.text()?;
        let axes = self.u32()?;
        if axes > MAX_AXES {
            return Err(format!("tensor {} has {axes} axes", quoted(name)));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            shape.push(self.length()?);
        }
        // The file lists the axis of adjacent values first.
        shape.reverse();
        Ok((name, shape, self.u32()?, self.u64()?))
    }
}

impl<'f> Gguf<'f> {
    /// Parses the file `bytes`.
    ///
    /// # Errors
    /// When it is not a whole GGUF file, or a tensor has a format that is not supported. The error
    /// names it.
    pub(super) fn parse(bytes: &'f [u8]) -> Result<Self, Fault> {
        let mut cursor = Cursor { bytes };
        if cursor.take_array()? != *MAGIC {
            return Err("it is not a GGUF file".to_owned());
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!(
                "it has the version {version} of the format; versions 2 and 3 in little-endian \
                 order are supported"
            ));
        }
        let counts = [cursor.u64()?, cursor.u64()?];
        if let Some(count) = counts.iter().find(|count| **count > MAX_ENTRIES) {
            return Err(format!("it has {count} tensors or keys, more than {MAX_ENTRIES}"));
        }
        let [tensors, keys] = counts;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = cursor.text()?;
            let kind = Kind::of(cursor.u32()?)?;
            if metadata.insert(key, cursor.value(kind)?).is_some() {
                return Err(format!("the key {} appears twice", quoted(key)));
            }
        }
        let mut file = Self { metadata, tensors: BTreeMap::new() };
        let mut described = Vec::new();
        for _ in 0..tensors {
            described.push(cursor.tensor()?);
        }
        let position = bytes.len() - cursor.bytes.len();
        let alignment = file.unsigned("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        let start = (position as u64).checked_next_multiple_of(alignment);
        let start = start.and_then(|start| usize::try_from(start).ok());
        // A file without tensors may end before the start of their values.
        let values = bytes.get(start.ok_or_else(damaged)?..).unwrap_or_default();
        let mut total = 0_usize;
        for (name, shape, format, offset) in described {
            let refuse = |reason: String| format!("tensor {} {shape:?} {reason}", quoted(name));
            let format = BlockFormat::of(format).map_err(|format| {
                refuse(format!(
                    "has the format {format}; supported are {}; take a file with less \
                     quantization, such as Q8_0 or F16",
                    BlockFormat::names()
                ))
            })?;
            let size = size_in_bytes(format, &shape).ok_or_else(|| {
                refuse(format!("does not consist of whole blocks of {}", format.values()))
            })?;
            let offset = usize::try_from(offset).map_err(|_too_large| damaged())?;
            let bytes = values.get(offset..).and_then(|rest| rest.get(..size));
            let bytes = bytes.ok_or_else(damaged)?;
            total = total.saturating_add(size);
            if total > values.len() {
                return Err("its tensors overlap".to_owned());
            }
            if file.tensors.insert(name, StoredTensor { format, shape, bytes }).is_some() {
                return Err(format!("tensor {} appears twice", quoted(name)));
            }
        }
        Ok(file)
    }

    fn get(&self, key: &str) -> Option<Value<'f>> {
        self.metadata.get(key).copied()
    }

    /// Returns the number `key`, if the file has the key.
    ///
    /// # Errors
    /// When it is not a number from 0.
    pub(super) fn unsigned(&self, key: &str) -> Result<Option<u64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(number)) => Ok(Some(number)),
            Some(Value::Signed(number)) if number >= 0 => Ok(Some(number.cast_unsigned())),
            Some(_) => Err(wrong(key, "a number")),
        }
    }

    /// Returns the number `key` with a fraction, if the file has the key.
    ///
    /// # Errors
    /// When it is another kind of value, infinite or NaN.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => Err(wrong(key, "a finite number with a fraction")),
        }
    }

    /// Returns the text `key`, if the file has the key.
    ///
    /// # Errors
    /// When it is another kind of value.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'f str>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(key, "a text")),
        }
    }

    /// Returns the truth value `key`, if the file has the key.
    ///
    /// # Errors
    /// When it is another kind of value.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(_) => Err(wrong(key, "true or false")),
        }
    }

    /// Returns the list `key`, if the file has the key and its value is a list.
    pub(super) fn list(&self, key: &str) -> Option<List<'f>> {
        match self.get(key) {
            Some(Value::List(list)) => Some(list),
            _ => None,
        }
    }
}

fn wrong(key: &str, expected: &str) -> Fault {
    format!("the value of {key} is not {expected}")
}

/// Returns the number of bytes of a tensor. `None` if its rows are not whole blocks.
fn size_in_bytes(format: BlockFormat, shape: &[usize]) -> Option<usize> {
    let (row, rows) = shape.split_last()?;
    if !row.is_multiple_of(format.values()) {
        return None;
    }
    let row = (row / format.values()).checked_mul(format.bytes())?;
    rows.iter().try_fold(row, |size, length| size.checked_mul(*length))
}

impl<'f> List<'f> {
    fn values(&self, kinds: &[Kind]) -> Option<impl Iterator<Item = Value<'f>> + use<'f>> {
        let Self { kind, count, bytes } = *self;
        let mut cursor = Cursor { bytes };
        // The values were parsed before, so `value` returns no error.
        kinds.contains(&kind).then(|| (0..count).map_while(move |_| cursor.value(kind).ok()))
    }

    /// Returns the texts of the list; `None` if it has others.
    pub(super) fn texts(&self) -> Option<impl Iterator<Item = &'f str> + use<'f>> {
        let values = self.values(&[Kind::Text])?;
        Some(values.filter_map(|value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        }))
    }

    /// Returns the whole numbers of the list; `None` if it has others. Truth values are 0 and 1.
    pub(super) fn integers(&self) -> Option<impl Iterator<Item = i64> + use<'f>> {
        let kinds =
            [Kind::U8, Kind::I8, Kind::U16, Kind::I16, Kind::U32, Kind::I32, Kind::I64, Kind::Bool];
        let values = self.values(&kinds)?;
        Some(values.filter_map(|value| match value {
            Value::Unsigned(number) => i64::try_from(number).ok(),
            Value::Signed(number) => Some(number),
            Value::Bool(truth) => Some(truth.into()),
            _ => None,
        }))
    }

    /// Returns the numbers of the list that are f32; `None` if it has others.
    pub(super) fn floats(&self) -> Option<impl Iterator<Item = f64> + use<'f>> {
        let values = self.values(&[Kind::F32])?;
        Some(values.filter_map(|value| match value {
            Value::Float(number) => Some(number),
            _ => None,
        }))
    }

    /// Returns the number of bytes of the list in the file.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the bytes of a list of 8-bit numbers; `None` if it has others.
    pub(super) fn bytes(&self) -> Option<&'f [u8]> {
        matches!(self.kind, Kind::U8 | Kind::I8).then_some(self.bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// Returns a key with a value of the given kind.
    pub(in super::super) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(name)[..], &kind.to_le_bytes(), value].concat()
    }

    /// Returns a key with a number.
    pub(in super::super) fn number(name: &str, value: u32) -> Vec<u8> {
        key(name, 4, &value.to_le_bytes())
    }

    /// Returns a key with a text.
    pub(in super::super) fn named(name: &str, value: &str) -> Vec<u8> {
        key(name, 8, &text(value))
    }

    /// Returns a key with a truth value.
    pub(in super::super) fn truth(name: &str, value: bool) -> Vec<u8> {
        key(name, 7, &[value.into()])
    }

    /// Returns a key with a list of values of the given kind.
    pub(in super::super) fn listed(name: &str, kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
        let count = (values.len() as u64).to_le_bytes();
        key(name, 9, &[&kind.to_le_bytes()[..], &count, &values.concat()].concat())
    }

    /// Returns the description of a tensor of f32 at `offset`, with the axis of adjacent values
    /// first.
    pub(in super::super) fn tensor(name: &str, axes: &[u64], offset: u64) -> Vec<u8> {
        let axes_count = u32::try_from(axes.len()).unwrap().to_le_bytes();
        let axes: Vec<u8> = axes.iter().flat_map(|length| length.to_le_bytes()).collect();
        [&text(name)[..], &axes_count, &axes, &0_u32.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    /// Returns a file with `values` bytes of tensors.
    pub(in super::super) fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], values: usize) -> Vec<u8> {
        let counts = [tensors.len() as u64, keys.len() as u64].map(u64::to_le_bytes);
        let mut file = [&MAGIC[..], &3_u32.to_le_bytes(), &counts.concat()].concat();
        file.extend(keys.iter().chain(tensors).flatten());
        let start = file.len().next_multiple_of(32);
        file.resize(start + values, 0);
        file
    }

    fn refusal(file: &[u8]) -> String {
        Gguf::parse(file).unwrap_err()
    }

    #[test]
    fn values_and_shapes_are_read() {
        let integers = [1_i32, -1].map(|integer| integer.to_le_bytes().to_vec());
        let keys = [
            key("count", 0, &[7]),
            key("negative", 5, &[255; 4]),
            named("name", "tiny"),
            key("half", 6, &0.5_f32.to_le_bytes()),
            key("undefined", 6, &f32::NAN.to_le_bytes()),
            truth("on", true),
            listed("list", 5, &integers),
        ];
        let bytes = file(&keys, &[tensor("a", &[4, 3], 0)], 48);
        let parsed = Gguf::parse(&bytes).unwrap();
        assert_eq!(parsed.unsigned("count"), Ok(Some(7)));
        assert_eq!(parsed.unsigned("absent"), Ok(None));
        assert!(parsed.unsigned("negative").is_err() && parsed.unsigned("name").is_err());
        assert_eq!(parsed.text("name"), Ok(Some("tiny")));
        assert_eq!(parsed.float("half"), Ok(Some(0.5)));
        assert!(parsed.float("count").is_err() && parsed.text("count").is_err());
        assert!(parsed.float("undefined").is_err());
        assert_eq!(parsed.bool("on"), Ok(Some(true)));
        assert!(parsed.bool("count").is_err());
        let list = parsed.list("list").unwrap();
        assert_eq!(list.integers().unwrap().collect::<Vec<_>>(), [1, -1]);
        assert!(list.texts().is_none() && list.floats().is_none() && list.bytes().is_none());
        assert_eq!(list.size(), 8);
        assert!(parsed.list("name").is_none());
        let found = &parsed.tensors["a"];
        assert_eq!((found.shape.as_slice(), found.bytes.len()), (&[3, 4][..], 48));
    }

    #[test]
    fn contradictory_file_is_refused() {
        let a = || tensor("a", &[4, 3], 0);
        let twice = [key("k", 0, &[1]), key("k", 0, &[1])];
        let alignment = |bytes: [u8; 4]| vec![key("general.alignment", 4, &bytes)];
        for (bytes, part) in [
            (file(&twice, &[], 0), "the key \"k\" appears twice"),
            (file(&[], &[a(), a()], 96), "tensor \"a\" appears twice"),
            (file(&[], &[a(), tensor("b", &[4, 3], 0)], 48), "its tensors overlap"),
            (file(&[], &[a()], 47), "damaged or incomplete"),
            (file(&[], &[tensor("a", &[4], u64::MAX)], 48), "damaged or incomplete"),
            (file(&[], &[tensor("a", &[u64::MAX, u64::MAX], 0)], 48), "whole blocks"),
            (file(&[], &[tensor("a", &[1; 5], 0)], 48), "tensor \"a\" has 5 axes"),
            (file(&[], &[tensor("a", &[], 0)], 48), "whole blocks"),
            (file(&alignment([0; 4]), &[], 0), "damaged or incomplete"),
            (file(&alignment([255; 4]), &[a()], 48), "damaged or incomplete"),
            (file(&[key("k", 99, &[])], &[], 0), "unknown kind 99"),
        ] {
            let message = refusal(&bytes);
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}
