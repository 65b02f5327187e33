//! A pickle machine that builds values and executes nothing: a call becomes a [`Value::Call`], which the reader
//! recognises or ignores. Opcodes and their meaning are those of CPython's `Lib/pickletools.py`, protocols 0 to 5.
//!
//! Values lie in one vector and refer to each other by index, so a file may share values, nest them or close a cycle
//! without deep recursion here.

use std::collections::HashMap;

/// Index of a value in [`Pickle::values`].
pub(super) type Id = usize;

/// The largest number of values: more than any published checkpoint has, and few enough to fit in memory.
const MAX_VALUES: usize = 1 << 24;
/// The limit of the length of a class or function name in bytes; one with a longer name is [`Value::Opaque`].
/// Checkpoints need no longer names, and a file could fill the memory with copies of a long text that it refers to many
/// times.
const MAX_GLOBAL: usize = 256;

/// A value that an opcode built.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Str(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module.name` of a class or function.
    Global(String),
    /// A call that was not made. `items` were then stored in its result, as in a dict subclass.
    Call {
        function: Id,
        arguments: Id,
        items: Vec<(Id, Id)>,
    },
    /// A persistent id: in a checkpoint, a storage outside of the pickle.
    Persistent(Id),
    /// Anything else: floats, bytes, sets, extensions.
    Opaque,
}

impl Value {
    fn global(module: &str, name: &str) -> Self {
        if module.len() + name.len() < MAX_GLOBAL { Self::Global(format!("{module}.{name}")) } else { Self::Opaque }
    }
}

/// One parsed pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle holds.
    pub(super) root: Id,
    /// The length of the pickle in bytes.
    pub(super) len: usize,
}

/// Bytes that are not a pickle.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the pickle breaks at byte {at}: {reason}")]
pub(super) struct PickleError {
    at: usize,
    reason: &'static str,
}

type Result<T> = std::result::Result<T, PickleError>;

impl Pickle {
    /// Reads the pickle that `bytes` begin with.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut machine = Machine { bytes, ..Default::default() };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root, len: machine.at })
    }

    /// Returns the value at `id`.
    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Returns all values in the order of the file.
    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    /// Returns the text at `id`, if it is text.
    pub(super) fn str(&self, id: Id) -> Option<&str> {
        if let Value::Str(text) = self.get(id) { Some(text) } else { None }
    }

    /// Returns the integer at `id`, if it is one that fits.
    pub(super) fn int<T: TryFrom<i128>>(&self, id: Id) -> Option<T> {
        if let Value::Int(int) = self.get(id) { T::try_from(*int).ok() } else { None }
    }

    /// Returns the elements of the tuple or list at `id`.
    pub(super) fn sequence(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(items) | Value::List(items) = self.get(id) { Some(items) } else { None }
    }

    /// Returns the name of the class or function at `id`.
    pub(super) fn global(&self, id: Id) -> Option<&str> {
        if let Value::Global(name) = self.get(id) { Some(name) } else { None }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    /// Runs to the STOP opcode.
    fn run(&mut self) -> Result<Id> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                opcode => self.step(opcode)?,
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // protocol and framing
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            // stack
            b'0' if self.marks.last() == Some(&self.stack.len()) => self.marked().map(drop),
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'2' => self.top().map(|id| self.stack.push(id)),
            // scalars
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' => match self.line()? {
                "00" => self.push(Value::Bool(false)),
                "01" => self.push(Value::Bool(true)),
                digits => self.push_digits(digits),
            },
            b'L' => {
                let digits = self.line()?;
                self.push_digits(digits.trim_end_matches('L'))
            }
            b'J' => {
                let int = self.unsigned(4)? as u32 as i32;
                self.push(Value::Int(int.into()))
            }
            b'K' => self.push_unsigned(1),
            b'M' => self.push_unsigned(2),
            0x8a => self.push_long(1),
            0x8b => self.push_long(4),
            b'F' => self.line().and_then(|_| self.push(Value::Opaque)),
            b'G' => self.take(8).and_then(|_| self.push(Value::Opaque)),
            // text and bytes
            b'S' => {
                let quoted = self.line()?;
                self.push(Value::Str(quoted.trim_matches(['\'', '"']).to_owned()))
            }
            b'V' => {
                let text = self.line()?.to_owned();
                self.push(Value::Str(text))
            }
            b'U' | 0x8c => self.push_text(1),
            b'T' | b'X' => self.push_text(4),
            0x8d => self.push_text(8),
            b'C' => self.push_opaque_bytes(1),
            b'B' => self.push_opaque_bytes(4),
            0x8e | 0x96 => self.push_opaque_bytes(8),
            // tuples, lists, dicts, sets
            b')' => self.push(Value::Tuple(vec![])),
            0x85..=0x87 => {
                let items = self.pop_many((opcode - 0x84).into())?;
                self.push(Value::Tuple(items))
            }
            b't' => self.push_marked(Value::Tuple),
            b']' => self.push(Value::List(vec![])),
            b'l' => self.push_marked(Value::List),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.marked()?;
                self.append(items)
            }
            b'}' => self.push(Value::Dict(vec![])),
            b'd' => {
                let items = self.marked()?;
                self.push(Value::Dict(pairs(&items)))
            }
            b's' => {
                let item = self.pop_many(2)?;
                self.set(&item)
            }
            b'u' => {
                let items = self.marked()?;
                self.set(&items)
            }
            0x8f => self.push(Value::Opaque),
            0x90 => self.marked().map(drop),
            0x91 => self.push_marked(|_| Value::Opaque),
            // memo
            b'p' => {
                let slot = self.slot()?;
                self.store(slot)
            }
            b'q' => self.unsigned(1).and_then(|slot| self.store(slot)),
            b'r' => self.unsigned(4).and_then(|slot| self.store(slot)),
            0x94 => self.store(self.memo.len() as u64),
            b'g' => {
                let slot = self.slot()?;
                self.recall(slot)
            }
            b'h' => self.unsigned(1).and_then(|slot| self.recall(slot)),
            b'j' => self.unsigned(4).and_then(|slot| self.recall(slot)),
            // globals, calls, objects
            b'c' => {
                let name = self.global()?;
                self.push(name)
            }
            0x93 => {
                let parts = self.pop_many(2)?;
                let name = match (&self.values[parts[0]], &self.values[parts[1]]) {
                    (Value::Str(module), Value::Str(name)) => Value::global(module, name),
                    _ => return self.fail("a global is not named by text"),
                };
                self.push(name)
            }
            b'R' | 0x81 => {
                let call = self.pop_many(2)?;
                self.push_call(call[0], call[1])
            }
            0x92 => {
                let call = self.pop_many(3)?;
                self.push_call(call[0], call[1])
            }
            b'i' => {
                let function = self.global()?;
                let arguments = self.marked()?;
                let function = self.add(function)?;
                let arguments = self.add(Value::Tuple(arguments))?;
                self.push_call(function, arguments)
            }
            b'o' => {
                let mut items = self.marked()?;
                if items.is_empty() {
                    return self.fail("an object has no class");
                }
                let function = items.remove(0);
                let arguments = self.add(Value::Tuple(items))?;
                self.push_call(function, arguments)
            }
            b'b' => self.pop().map(drop), // the attributes of an object
            b'P' => {
                let text = self.line()?.to_owned();
                let id = self.add(Value::Str(text))?;
                self.push(Value::Persistent(id))
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            0x82 => self.take(1).and_then(|_| self.push(Value::Opaque)),
            0x83 => self.take(2).and_then(|_| self.push(Value::Opaque)),
            0x84 => self.take(4).and_then(|_| self.push(Value::Opaque)),
            _ => self.fail("unknown opcode"),
        }
    }

    fn fail<T>(&self, reason: &'static str) -> Result<T> {
        Err(PickleError { at: self.at, reason })
    }

    // the bytes

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => self.fail("the file ends too early"),
        }
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else { return self.fail("a line has no end") };
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).or_else(|_| self.fail("a line is not UTF-8"))
    }

    fn slot(&mut self) -> Result<u64> {
        let digits = self.line()?;
        digits.parse().or_else(|_| self.fail("a memo slot is not a number"))
    }

    /// Reads a little-endian number of `width` bytes.
    fn unsigned(&mut self, width: u64) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |int, &byte| int << 8 | u64::from(byte)))
    }

    fn global(&mut self) -> Result<Value> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(Value::global(module, name))
    }

    // the stack

    fn add(&mut self, value: Value) -> Result<Id> {
        if self.values.len() == MAX_VALUES {
            return self.fail("too many values");
        }
        self.values.push(value);
        Ok(self.values.len() - 1)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_unsigned(&mut self, width: u64) -> Result<()> {
        let int = self.unsigned(width)?;
        self.push(Value::Int(int.into()))
    }

    fn push_digits(&mut self, digits: &str) -> Result<()> {
        let value = digits.parse().map_or(Value::Opaque, Value::Int);
        self.push(value)
    }

    /// Pushes a two's complement integer that follows its length; one of more than 16 bytes, which no storage needs, is
    /// opaque.
    fn push_long(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let bytes = self.take(len)?;
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
        let int = || bytes.iter().rev().fold(sign, |int, &byte| int << 8 | i128::from(byte));
        let value = if bytes.len() <= 16 { Value::Int(int()) } else { Value::Opaque };
        self.push(value)
    }

    fn push_text(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.push(Value::Str(text))
    }

    fn push_opaque_bytes(&mut self, width: u64) -> Result<()> {
        let len = self.unsigned(width)?;
        self.take(len)?;
        self.push(Value::Opaque)
    }

    fn push_marked(&mut self, value: impl Fn(Vec<Id>) -> Value) -> Result<()> {
        let items = self.marked()?;
        self.push(value(items))
    }

    fn push_call(&mut self, function: Id, arguments: Id) -> Result<()> {
        self.push(Value::Call { function, arguments, items: vec![] })
    }

    /// Returns the height down to which the stack may be emptied: that of the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        if self.stack.len() > self.floor() {
            Ok(self.stack[self.stack.len() - 1])
        } else {
            self.fail("the stack is empty")
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        if self.stack.len() - self.floor() < count {
            return self.fail("the stack is empty");
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    /// Takes the values above the last mark, and the mark.
    fn marked(&mut self) -> Result<Vec<Id>> {
        let Some(mark) = self.marks.pop() else { return self.fail("there is no mark") };
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, new: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        if let Value::List(items) = &mut self.values[list] {
            items.extend(new);
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> Result<()> {
        let dict = self.top()?;
        if let Value::Dict(items) | Value::Call { items, .. } = &mut self.values[dict] {
            items.extend(pairs(new));
        }
        Ok(())
    }

    fn store(&mut self, slot: u64) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(slot, id);
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Result<()> {
        let Some(&id) = self.memo.get(&slot) else { return self.fail("a memo slot was never filled") };
        self.stack.push(id);
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a value out together with the values that it refers to.
    fn show(pickle: &Pickle, id: Id) -> String {
        let list = |items: &[Id]| items.iter().map(|&item| show(pickle, item)).collect::<Vec<_>>().join(" ");
        let pairs = |items: &[(Id, Id)]| {
            items
                .iter()
                .map(|&(key, value)| format!("{}={}", show(pickle, key), show(pickle, value)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        match pickle.get(id) {
            Value::Int(int) => int.to_string(),
            Value::Str(text) => text.clone(),
            Value::Tuple(items) => format!("({})", list(items)),
            Value::List(items) => format!("[{}]", list(items)),
            Value::Dict(items) => format!("{{{}}}", pairs(items)),
            Value::Global(name) => name.clone(),
            Value::Call { function, arguments, items } => {
                format!("{}{}{{{}}}", show(pickle, *function), show(pickle, *arguments), pairs(items))
            }
            Value::Persistent(id) => format!("#{}", show(pickle, *id)),
            value => format!("{value:?}"),
        }
    }

    fn parse(bytes: &[u8]) -> String {
        Pickle::parse(bytes).map_or_else(|error| error.to_string(), |pickle| show(&pickle, pickle.root))
    }

    /// `pickle.dumps({"a": [1, -2, 300, 70000, 2**40, True, None, 1.5], "t": ((), (1,), (1, 2), (1, 2, 3, 4))},
    /// protocol)`
    #[test]
    fn protocols_0_to_5_give_the_same_value() {
        let want = "{a=[1 -2 300 70000 1099511627776 Bool(true) None Opaque] t=(() (1) (1 2) (1 2 3 4))}";
        let dumps: [&[u8]; 4] = [
            b"(dp0\nVa\np1\n(lp2\nI1\naI-2\naI300\naI70000\naL1099511627776L\naI01\naNaF1.5\nasVt\np3\n((t(I1\ntp4\n(I1\nI2\ntp5\n(I1\nI2\nI3\nI4\ntp6\ntp7\ns.",
            b"}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00L1099511627776L\nI01\nNG?\xf8\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00tq\x03()(K\x01tq\x04(K\x01K\x02tq\x05(K\x01K\x02K\x03K\x04tq\x06tq\x07u.",
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01\x88NG?\xf8\x00\x00\x00\x00\x00\x00eX\x01\x00\x00\x00tq\x03()K\x01\x85q\x04K\x01K\x02\x86q\x05(K\x01K\x02K\x03K\x04tq\x06tq\x07u.",
            b"\x80\x04\x95M\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01\x88NG?\xf8\x00\x00\x00\x00\x00\x00e\x8c\x01t\x94()K\x01\x85\x94K\x01K\x02\x86\x94(K\x01K\x02K\x03K\x04t\x94t\x94u.",
        ];
        for bytes in dumps {
            assert_eq!(parse(bytes), want);
        }
    }

    #[test]
    fn calls_and_persistent_ids_are_values() {
        let ordered = b"ccollections\nOrderedDict\n)Rq\x00X\x01\x00\x00\x00aK\x01s}b.";
        assert_eq!(parse(ordered), "collections.OrderedDict(){a=1}");
        assert_eq!(parse(b"\x8c\x01m\x8c\x01f\x93K\x05\x85\x81."), "m.f(5){}");
        assert_eq!(parse(b"(im\nf\n."), "m.f(){}");
        assert_eq!(parse(b"(cm\nf\nK\x05o."), "m.f(5){}");
        assert_eq!(parse(b"K\x05\x85Q."), "#(5)");
        assert_eq!(parse(b"Pkey\n."), "#key");
    }

    /// A long text that is recalled many times would otherwise fill the memory.
    #[test]
    fn a_global_with_too_long_a_name_is_opaque() {
        let module = [b"X\x00\x01\x00\x00".as_slice(), &[b'm'; 256]].concat();
        assert_eq!(parse(&[&module, b"q\x00\x8c\x01f\x93.".as_slice()].concat()), "Opaque");
        assert_eq!(parse(&[b"c".as_slice(), &[b'm'; 256], b"\nf\n."].concat()), "Opaque");
    }

    #[test]
    fn integers_have_their_sign_and_width() {
        assert_eq!(parse(b"\x8a\x00."), "0");
        assert_eq!(parse(b"\x8a\x01\xff."), "-1");
        assert_eq!(parse(b"\x8a\x02\xff\x00."), "255");
        assert_eq!(parse(&[b"\x8a\x11".as_slice(), &[1; 17], b"."].concat()), "Opaque");
    }

    #[test]
    fn the_error_of_a_broken_pickle_names_the_byte() {
        assert_eq!(parse(b"K\x01"), "the pickle breaks at byte 2: the file ends too early");
        assert_eq!(parse(b"."), "the pickle breaks at byte 1: the stack is empty");
        assert_eq!(parse(b"(K\x01t0."), "the pickle breaks at byte 6: the stack is empty");
        assert_eq!(parse(b"K\x01(R."), "the pickle breaks at byte 4: the stack is empty");
        assert_eq!(parse(b"h\x09."), "the pickle breaks at byte 2: a memo slot was never filled");
        assert_eq!(parse(b"\xff."), "the pickle breaks at byte 1: unknown opcode");
        assert_eq!(parse(b"X\xff\xff\xff\xffa."), "the pickle breaks at byte 5: the file ends too early");
    }

    proptest! {
        /// Opcodes are more likely than in uniform noise, so that the machine gets beyond the first bytes.
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"().0122NK]a}eusqhRQbtdlcio\n\x81\x85\x86\x93\x94".to_vec())], 0..200)
        ) {
            let _ = Pickle::parse(&bytes);
        }
    }
}
