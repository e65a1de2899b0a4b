//! Parses the pickle inside a torch file as data, without executing it.
//!
//! A pickle is a program for a stack machine that may name and call any Python function. This
//! machine implements only the instructions of protocol 2 that `torch.save` uses for a dictionary
//! of tensors (<https://github.com/python/cpython/blob/v3.13.0/Lib/pickletools.py>) and a fixed set
//! of names. It calls nothing: the effect of each name on its arguments is implemented here. Any
//! other name or instruction is an error.
//!
//! Invariants:
//! 1. Memory and time are bounded by the length of the pickle and by [`MOST_VALUES`]. Each
//!    instruction creates at most one value, values refer to each other by number, and only the few
//!    axes of a tensor are copied.
//! 2. The kind and the size of a value are always checked before use.

use std::collections::HashMap;

use safetensors::Dtype;

use super::file::quoted;

/// Description of a pickle's fault, to be printed after the name of its file.
type PickleFault = String;

/// Index of a value in [`PickleMachine::values`].
type Id = usize;

/// Classes of `torch` that name the element type of a storage.
const STORAGES: [(&str, Dtype); 9] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("DoubleStorage", Dtype::F64),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
];

/// Maximum number of axes of a tensor, more than any model needs. Axes are the only data copied for
/// each tensor.
const MAX_AXES: usize = 8;

/// Maximum number of values, of stack entries, of marks and of memo entries in a pickle. Each
/// tensor of a model needs about 30 values.
///
/// With [`MOST_STEPS`] and [`MOST_TENSORS`], this bounds the memory by 200 MB: a value takes at
/// most 100 bytes, twice while the list grows, and a tensor 160 more for its axes.
const MOST_VALUES: usize = 1 << 18;
/// Maximum number of instructions in a pickle.
const MOST_STEPS: usize = 4 * MOST_VALUES;
/// Maximum number of entries of the dictionary of tensors. Each is copied, and may name the same
/// tensor as others.
const MOST_TENSORS: usize = MOST_VALUES / 8;

/// Name that a pickle may use.
#[derive(Clone, Copy)]
enum Class {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// View of a storage, as declared by the pickle. The bounds are not checked here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor<'p> {
    pub(super) dtype: Dtype,
    /// Name of the storage in the archive.
    pub(super) storage: &'p str,
    /// Number of values in the storage.
    pub(super) stored: usize,
    /// Index of the first value.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Distance in values between adjacent indices, for each axis.
    pub(super) strides: Vec<usize>,
}

enum Value<'p> {
    /// None, a boolean or a float: values that tensors do not need.
    Plain,
    Number(i64),
    Text(&'p str),
    Class(Class),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Element type, name and number of values.
    Storage(Dtype, &'p str, usize),
    Tensor(Tensor<'p>),
}

/// Returns the tensors of the pickled dictionary in `bytes`, with their names, in its order.
///
/// # Errors
/// When the pickle is not such a dictionary, or uses a name that tensors do not need. The error
/// contains the name.
pub(super) fn tensors(bytes: &[u8]) -> Result<Vec<(&str, Tensor<'_>)>, PickleFault> {
    let mut machine = PickleMachine {
        bytes,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let mut steps = 0;
    while machine.step()? {
        steps += 1;
        if steps > MOST_STEPS || machine.size_of_state() > MOST_VALUES {
            return Err(format!(
                "its pickle has more than {MOST_VALUES} values, which no model needs"
            ));
        }
    }
    let top = machine.pop()?;
    let Value::Dict(entries) = &machine.values[top] else {
        return Err(
            "it does not contain a dictionary of tensors: save the model's state_dict()".to_owned()
        );
    };
    if entries.len() > MOST_TENSORS {
        return Err(format!(
            "its pickle has {} tensors, over the limit of {MOST_TENSORS}",
            entries.len()
        ));
    }
    let entries = entries.iter().map(|&(name, value)| {
        let name = machine.text(name)?;
        match &machine.values[value] {
            Value::Tensor(tensor) => Ok((name, tensor.clone())),
            _ => {
                let name = quoted(name);
                Err(format!("{name} is not a tensor: save only the model's state_dict()"))
            }
        }
    });
    entries.collect()
}

struct PickleMachine<'p> {
    /// Unread part of the pickle.
    bytes: &'p [u8],
    values: Vec<Value<'p>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

fn damaged() -> PickleFault {
    "its pickle is damaged: copy the file again".to_owned()
}

impl<'p> PickleMachine<'p> {
    /// Runs the next instruction; returns false after the last one.
    fn step(&mut self) -> Result<bool, PickleFault> {
        let [code] = self.take_array()?;
        // Opcodes by their names in pickletools.py: 0x80 PROTO, '.' STOP, 'c' GLOBAL, 'N' NONE,
        // 0x88 NEWTRUE, 0x89 NEWFALSE, 'G' BINFLOAT, 'K' BININT1, 'M' BININT2, 'J' BININT, 0x8a
        // LONG1, 'X' BINUNICODE, '(' MARK, ')' EMPTY_TUPLE, 't' TUPLE, 0x85 to 0x87 TUPLE1 to
        // TUPLE3, '}' EMPTY_DICT, 's' SETITEM, 'u' SETITEMS, 'q' BINPUT, 'r' LONG_BINPUT, 'h'
        // BINGET, 'j' LONG_BINGET, 'Q' BINPERSID, 'R' REDUCE, 'b' BUILD.
        match code {
            // Protocol number. It is ignored: an instruction of a later protocol is rejected by
            // itself.
            0x80 => drop(self.take(1)?),
            b'.' => return Ok(false),
            b'c' => self.name()?,
            b'N' | 0x88 | 0x89 => self.push(Value::Plain),
            b'G' => {
                self.take(8)?;
                self.push(Value::Plain);
            }
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let number = i32::from_le_bytes(self.take_array()?);
                self.push(Value::Number(number.into()));
            }
            0x8a => {
                let [length] = self.take_array()?;
                self.integer(length.into())?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take_array()?);
                let text = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
                let text = str::from_utf8(text).map_err(|_invalid| damaged())?;
                self.push(Value::Text(text));
            }
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            0x85..=0x87 => {
                let start = self.stack.len().checked_sub(usize::from(code - 0x84));
                let items = self.stack.split_off(start.ok_or_else(damaged)?);
                self.push(Value::Tuple(items));
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.insert(&items)?;
            }
            b'q' => {
                let [slot] = self.take_array()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take_array()?);
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = self.take_array()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take_array()?);
                self.recall(slot)?;
            }
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.attributes()?,
            other => {
                return Err(format!(
                    "its pickle has the instruction {other:#04x}, which no tensor needs: save it \
                     with the defaults of torch.save"
                ));
            }
        }
        Ok(true)
    }

    /// Returns the size of the largest of the machine's collections.
    fn size_of_state(&self) -> usize {
        [self.values.len(), self.stack.len(), self.marks.len(), self.memo.len()]
            .into_iter()
            .fold(0, usize::max)
    }

    fn take(&mut self, count: usize) -> Result<&'p [u8], PickleFault> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], PickleFault> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn take_line(&mut self) -> Result<&'p str, PickleFault> {
        let end = self.bytes.iter().position(|&byte| byte == b'\n').ok_or_else(damaged)?;
        let line = self.take(end)?;
        self.take(1)?;
        str::from_utf8(line).map_err(|_invalid| damaged())
    }

    /// Pushes a number of `length` bytes. Numbers of fewer than eight bytes are read as unsigned,
    /// because sizes are never negative.
    fn integer(&mut self, length: usize) -> Result<(), PickleFault> {
        let mut bytes = [0; 8];
        let taken = self.take(length)?;
        bytes.get_mut(..length).ok_or_else(damaged)?.copy_from_slice(taken);
        self.push(Value::Number(i64::from_le_bytes(bytes)));
        Ok(())
    }

    fn push(&mut self, value: Value<'p>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, PickleFault> {
        self.stack.pop().ok_or_else(damaged)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, PickleFault> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(damaged)?))
    }

    fn remember(&mut self, slot: u32) -> Result<(), PickleFault> {
        let top = *self.stack.last().ok_or_else(damaged)?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), PickleFault> {
        self.stack.push(*self.memo.get(&slot).ok_or_else(damaged)?);
        Ok(())
    }

    /// Inserts alternating keys and values into the dictionary on top of the stack.
    fn insert(&mut self, items: &[Id]) -> Result<(), PickleFault> {
        let top = *self.stack.last().ok_or_else(damaged)?;
        let (pairs, rest) = items.as_chunks();
        match &mut self.values[top] {
            Value::Dict(entries) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => Err(damaged()),
        }
    }

    fn name(&mut self) -> Result<(), PickleFault> {
        let (module, name) = (self.take_line()?, self.take_line()?);
        let storage = STORAGES.iter().find(|(class, _)| *class == name);
        let class = match (module, name) {
            ("collections", "OrderedDict") => Class::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Class::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Class::RebuildParameter,
            ("torch", _) if let Some((_, dtype)) = storage => Class::Storage(*dtype),
            _ => {
                let name = quoted(&format!("{module}.{name}"));
                return Err(format!(
                    "its pickle refers to {name}, which no tensor needs and which may run code; \
                     Caxton did not run it"
                ));
            }
        };
        self.push(Value::Class(class));
        Ok(())
    }

    /// Converts a persistent id of torch to a storage: a tuple of type, class, name, location and
    /// number of values.
    fn storage(&mut self) -> Result<(), PickleFault> {
        let id = self.pop()?;
        let &[_, class, name, _, count] = self.tuple(id)? else { return Err(damaged()) };
        let Value::Class(Class::Storage(dtype)) = self.values[class] else { return Err(damaged()) };
        let storage = Value::Storage(dtype, self.text(name)?, self.size(count)?);
        self.push(storage);
        Ok(())
    }

    fn call(&mut self) -> Result<(), PickleFault> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?;
        let made = match (&self.values[callee], arguments) {
            (Value::Class(Class::OrderedDict), []) => Value::Dict(Vec::new()),
            (Value::Class(Class::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                let Value::Storage(dtype, name, stored) = self.values[storage] else {
                    return Err(damaged());
                };
                Value::Tensor(Tensor {
                    dtype,
                    storage: name,
                    stored,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                })
            }
            // A parameter is represented by the tensor that it wraps.
            (Value::Class(Class::RebuildParameter), &[tensor, ..]) => {
                self.stack.push(tensor);
                return Ok(());
            }
            _ => return Err(damaged()),
        };
        self.push(made);
        Ok(())
    }

    /// Skips the attributes of a dictionary. `state_dict()` stores version numbers there.
    fn attributes(&mut self) -> Result<(), PickleFault> {
        self.pop()?;
        let top = *self.stack.last().ok_or_else(damaged)?;
        match self.values[top] {
            Value::Dict(_) => Ok(()),
            _ => Err(damaged()),
        }
    }

    fn tuple(&self, id: Id) -> Result<&[Id], PickleFault> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => Err(damaged()),
        }
    }

    fn text(&self, id: Id) -> Result<&'p str, PickleFault> {
        match self.values[id] {
            Value::Text(text) => Ok(text),
            _ => Err(damaged()),
        }
    }

    fn size(&self, id: Id) -> Result<usize, PickleFault> {
        match self.values[id] {
            Value::Number(number) => usize::try_from(number).map_err(|_negative| damaged()),
            _ => Err(damaged()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, PickleFault> {
        let axes = self.tuple(id)?;
        if axes.len() > MAX_AXES {
            return Err(format!(
                "its pickle has a tensor of {} axes, over the limit of {MAX_AXES}",
                axes.len()
            ));
        }
        axes.iter().map(|&id| self.size(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn non_tensor_names_are_refused() {
        for (module, name) in [
            ("posix", "system"),
            ("builtins", "eval"),
            ("torch", "load"),
            ("torch.FloatStorage", "__init__"),
            ("collections", "defaultdict"),
            ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ] {
            // The name comes first, or after instructions that are valid.
            for before in [&b"\x80\x02"[..], b"\x80\x02}q\0X\x01\0\0\0a", b"\x80\x02N"] {
                let pickle = [before, format!("c{module}\n{name}\n)R.").as_bytes()].concat();
                let refusal = tensors(&pickle).unwrap_err();
                let expected = format!("its pickle refers to \"{module}.{name}\", ");
                assert!(refusal.starts_with(&expected), "{refusal}");
            }
        }
    }

    #[test]
    fn only_tensor_dictionaries_are_accepted() {
        let cases: [(&[u8], &str); 12] = [
            (b"", "damaged"),
            (b".", "damaged"),
            (b"N.", "not contain a dictionary"),
            (b"}X\x01\0\0\0aK\x01s.", "\"a\" is not a tensor"),
            (b"}K\x01K\x01s.", "damaged"),
            (b"}(K\x01u.", "damaged"),
            (b"(K\x01\x85\x85t0.", "instruction 0x30"),
            // A text of four gigabytes, a number of 255 bytes, and a tuple larger than the stack.
            (b"X\xff\xff\xff\xffa.", "damaged"),
            (b"\x8a\xff.", "damaged"),
            (b"\x87.", "damaged"),
            // A mark above the top of the stack, after entries below it were popped.
            (b"}N(bt.", "damaged"),
            (b"ctorch\nFloatStorage\n)R.", "damaged"),
        ];
        for (pickle, part) in cases {
            let refusal = tensors(pickle).unwrap_err();
            assert!(refusal.contains(part), "{pickle:?}: {refusal}");
        }
    }

    #[test]
    fn errors_quote_only_the_start_of_names() {
        let long = "a\u{1b}".repeat(1 << 20);
        let length = u32::try_from(long.len()).unwrap().to_le_bytes();
        let text = [&b"}X"[..], &length, long.as_bytes(), b"K\x01s."].concat();
        for pickle in [text, format!("ctorch\n{long}\n.").into_bytes()] {
            let refusal = tensors(&pickle).unwrap_err();
            assert!(refusal.contains("a\\u{1b}") && refusal.len() < 700, "{}", refusal.len());
        }
    }

    #[test]
    fn dictionary_with_too_many_entries_is_refused() {
        // One text and one value, which all entries share.
        let mut pickle = b"}X\x01\0\0\0aq\0".to_vec();
        pickle.extend(b"K\x01s");
        for _ in 0..MOST_TENSORS {
            pickle.extend(b"h\0h\0s");
        }
        pickle.push(b'.');
        let refusal = tensors(&pickle).unwrap_err();
        assert!(refusal.contains("has 32769 tensors, over the limit of 32768"), "{refusal}");
    }

    #[test]
    fn exponentially_nested_tuples_are_refused() {
        // Each tuple contains the previous one twice, so the first value is contained 2^1000 times.
        let mut pickle = b"N".to_vec();
        pickle.extend(b"q\0h\0\x86".repeat(1000));
        pickle.push(b'.');
        assert!(tensors(&pickle).is_err());
    }

    #[test]
    fn pickle_with_too_many_values_is_refused() {
        // Values, stack entries, marks, memo entries, and instructions without a result.
        let slots = (0..=u32::try_from(MOST_VALUES).unwrap()).flat_map(|slot| {
            let [a, b, c, d] = slot.to_le_bytes();
            [b'r', a, b, c, d]
        });
        for pickle in [
            b"N".repeat(MOST_VALUES + 2),
            [b"Nq\0".to_vec(), b"h\0".repeat(MOST_VALUES + 2)].concat(),
            b"(".repeat(MOST_VALUES + 2),
            [b"N".to_vec(), slots.collect()].concat(),
            b"\x80\x02".repeat(MOST_STEPS + 2),
        ] {
            let refusal = tensors(&pickle).unwrap_err();
            assert!(refusal.contains("more than 262144 values"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(&b"c(tNKMJXqhQRbsu})\n.\x80\x85\x86\x87\x8a"[..]),
                    any::<u8>(),
                ],
                0..200,
            ),
        ) {
            prop_assert!(tensors(&bytes).is_ok_and(|found| found.is_empty()) || tensors(&bytes).is_err());
        }

        #[test]
        fn changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut pickle = include_bytes!("../../../tests/golden/torch/weights.bin").to_vec();
            let at = at.index(pickle.len());
            pickle[at] = byte;
            // The archive contains the pickle uncompressed.
            let start = pickle.windows(2).position(|pair| pair == b"\x80\x02");
            if let Some(start) = start {
                drop(tensors(&pickle[start..]));
            }
        }
    }
}
