//! Python's pickles, as far as CIFAR's batches need them.
//!
//! A pickle is a program, and Python's own reader runs whatever that program names. This one builds numbers, texts, bytes,
//! lists, tuples, dictionaries and `NumPy`'s arrays of them, and refuses every other name and operation. All values lie in
//! one vector and refer to each other by index, so that no file, however nested, can exhaust stack or memory.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is wrong with a pickle, and where, in bytes from its start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PickleError {
    pub(crate) offset: u64,
    pub(crate) found: String,
    pub(crate) expected: String,
}

/// What a pickle holds.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: usize,
}

/// A value; others are named by their index.
#[derive(Clone, Debug)]
enum Value<'a> {
    Nothing,
    Number(i64),
    Fraction,
    Bytes(Cow<'a, [u8]>),
    Text(Cow<'a, str>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dictionary(Vec<(usize, usize)>),
    /// A class or function of Python that we know.
    Name(Known),
    /// A type of `NumPy`'s, such as `u1`, and whether its bytes come most significant first.
    Type(String, bool),
    Array(Option<Array>),
}

/// The names a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// `_codecs.encode`: how Python 3 writes bytes for Python 2.
    Encode,
    /// `numpy.core.multiarray._reconstruct`: an array whose content follows.
    Reconstruct,
    /// `numpy.core.multiarray.scalar`: one number.
    Scalar,
    /// `numpy.core.numeric._frombuffer`: an array of bytes.
    FromBuffer,
    /// `numpy.ndarray`.
    Array,
    /// `numpy.dtype`.
    Type,
}

#[derive(Clone, Debug)]
struct Array {
    shape: Vec<usize>,
    kind: String,
    is_big_endian: bool,
    by_columns: bool,
    data: usize,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of any protocol; what follows its end is passed over, as Python does.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, PickleError> {
        Machine { bytes, at: 0, op: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new() }
            .run()
    }

    /// The value of a key, if the pickle is a dictionary that has it.
    pub(crate) fn get(&self, key: &str) -> Option<usize> {
        let Value::Dictionary(items) = &self.values[self.root] else { return None };
        let is_key = |index: usize| match &self.values[index] {
            Value::Bytes(bytes) => bytes.as_ref() == key.as_bytes(),
            Value::Text(text) => text == key,
            _ => false,
        };
        // Later items replace earlier ones.
        items.iter().rev().find(|(name, _)| is_key(*name)).map(|&(_, value)| value)
    }

    /// The rows of an array of bytes with two dimensions, and how long one is.
    pub(crate) fn rows(&self, index: usize) -> Result<(&[u8], usize), String> {
        let Value::Array(Some(Array { shape, kind, by_columns: false, data, .. })) = &self.values[index] else {
            return Err(self.describe(index));
        };
        let (&[count, length], "u1", Value::Bytes(bytes)) = (&shape[..], kind.as_str(), &self.values[*data]) else {
            return Err(self.describe(index));
        };
        if count.checked_mul(length) != Some(bytes.len()) {
            return Err(format!("{} bytes for {count} rows of {length}", bytes.len()));
        }
        Ok((bytes, length))
    }

    /// Whole numbers of a list, a tuple or an array.
    pub(crate) fn numbers(&self, index: usize) -> Result<Vec<i64>, String> {
        match &self.values[index] {
            Value::List(items) | Value::Tuple(items) => items
                .iter()
                .map(|&item| match self.values[item] {
                    Value::Number(number) => Ok(number),
                    _ => Err(format!("a list with {}", self.describe(item))),
                })
                .collect(),
            Value::Array(Some(Array { shape, kind, is_big_endian, data, .. })) if shape.len() == 1 => {
                let Value::Bytes(bytes) = &self.values[*data] else { return Err(self.describe(index)) };
                numbers(bytes, kind, *is_big_endian).ok_or_else(|| self.describe(index))
            }
            _ => Err(self.describe(index)),
        }
    }

    fn describe(&self, index: usize) -> String {
        match &self.values[index] {
            Value::Nothing => "nothing".to_owned(),
            Value::Number(number) => format!("the number {number}"),
            Value::Fraction => "a fraction".to_owned(),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Text(_) => "a text".to_owned(),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Tuple(items) => format!("a tuple of {}", items.len()),
            Value::Dictionary(_) => "a dictionary".to_owned(),
            Value::Array(Some(array)) => format!("an array of {} in {:?}", array.kind, array.shape),
            Value::Name(_) | Value::Type(..) | Value::Array(None) => "a name".to_owned(),
        }
    }
}

/// Whole numbers as `NumPy` stores them.
fn numbers(bytes: &[u8], kind: &str, is_big_endian: bool) -> Option<Vec<i64>> {
    let size = match kind {
        "u1" | "i1" | "b1" => 1,
        "u2" | "i2" => 2,
        "u4" | "i4" => 4,
        "u8" | "i8" => 8,
        _ => return None,
    };
    let number = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        if is_big_endian {
            wide[..size].reverse();
        }
        let value = i64::from_le_bytes(wide);
        let unused = 64 - 8 * size as u32;
        if kind.starts_with('i') { value << unused >> unused } else { value }
    };
    bytes.len().is_multiple_of(size).then(|| bytes.chunks_exact(size).map(number).collect())
}

/// The machine that a pickle is a program for.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the present operation begins.
    op: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: BTreeMap<u64, usize>,
}

type Step<T> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    #[allow(clippy::too_many_lines, reason = "one line or two for each operation")]
    fn run(mut self) -> Step<Pickle<'a>> {
        loop {
            self.op = self.at;
            let [op] = self.array()?;
            match op {
                // PROTO, FRAME
                0x80 => drop(self.array::<1>()?),
                0x95 => drop(self.array::<8>()?),
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root });
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.since_mark()?),
                b'2' => {
                    let top = self.pop()?;
                    self.stack.extend([top, top]);
                }
                b'N' => self.push(Value::Nothing),
                0x88 => self.push(Value::Number(1)),
                0x89 => self.push(Value::Number(0)),
                b'I' | b'L' => {
                    let line = self.line()?;
                    let number = line
                        .trim_end_matches('L')
                        .parse()
                        .map_err(|_| self.refused(&format!("the number {line:?}")))?;
                    self.push(Value::Number(number));
                }
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Value::Number(number.into()));
                }
                b'K' => {
                    let [number] = self.array()?;
                    self.push(Value::Number(number.into()));
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Value::Number(number.into()));
                }
                0x8a => {
                    let [length] = self.array()?;
                    let bytes = self.take(length.into())?;
                    if bytes.len() > 8 {
                        return Err(self.refused("a number of more than 64 bits"));
                    }
                    let sign = bytes.last().is_some_and(|&byte| byte >= 0x80);
                    let mut wide = [if sign { 0xff } else { 0 }; 8];
                    wide[..bytes.len()].copy_from_slice(bytes);
                    self.push(Value::Number(i64::from_le_bytes(wide)));
                }
                b'F' => {
                    self.line()?;
                    self.push(Value::Fraction);
                }
                b'G' => {
                    self.array::<8>()?;
                    self.push(Value::Fraction);
                }
                b'U' | b'C' => self.bytes_of_length::<1>()?,
                b'T' | b'B' => self.bytes_of_length::<4>()?,
                0x8e | 0x96 => self.bytes_of_length::<8>()?,
                0x8c => self.text_of_length::<1>()?,
                b'X' => self.text_of_length::<4>()?,
                0x8d => self.text_of_length::<8>()?,
                b'V' => {
                    let line = self.line()?;
                    if line.contains('\\') {
                        return Err(self.refused("a text with escapes"));
                    }
                    self.push(Value::Text(line.into()));
                }
                b']' => self.push(Value::List(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                b'}' => self.push(Value::Dictionary(Vec::new())),
                b'l' | b't' | b'd' | 0x85..=0x87 => self.collect(op)?,
                b'a' | b'e' | b's' | b'u' => self.add(op)?,
                b'p' | b'q' | b'r' | 0x94 => {
                    let key = match op {
                        b'q' => u64::from(self.array::<1>()?[0]),
                        b'r' => u64::from(u32::from_le_bytes(self.array()?)),
                        b'p' => self.key()?,
                        _ => self.memo.len() as u64,
                    };
                    let top = *self.stack.last().ok_or_else(|| self.refused("an empty stack"))?;
                    self.memo.insert(key, top);
                }
                b'g' | b'h' | b'j' => {
                    let key = match op {
                        b'h' => u64::from(self.array::<1>()?[0]),
                        b'j' => u64::from(u32::from_le_bytes(self.array()?)),
                        _ => self.key()?,
                    };
                    let value = *self.memo.get(&key).ok_or_else(|| self.refused("a reference to nothing"))?;
                    self.stack.push(value);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.name(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) =
                        (self.values[module].clone(), self.values[name].clone())
                    else {
                        return Err(self.refused("a name that is no text"));
                    };
                    self.name(&module, &name)?;
                }
                b'R' => self.call()?,
                b'b' => self.build()?,
                _ => return Err(self.refused(&format!("operation {op:#04x}"))),
            }
        }
    }

    fn refused(&self, found: &str) -> PickleError {
        PickleError {
            offset: self.op as u64,
            found: found.to_owned(),
            expected: "a pickle of lists, bytes and numbers only".to_owned(),
        }
    }

    fn take(&mut self, length: u64) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| PickleError {
            offset: self.bytes.len() as u64,
            found: "the end of the file".to_owned(),
            expected: format!("{} more bytes of a pickle", length.saturating_sub(rest.len() as u64)),
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("so many bytes were taken"))
    }

    /// A length in `N` bytes, least significant first.
    fn length<const N: usize>(&mut self) -> Step<u64> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        Ok(u64::from_le_bytes(wide))
    }

    fn line(&mut self) -> Step<&'a str> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let line = self.take(length.map_or(u64::MAX, |length| length as u64 + 1))?;
        std::str::from_utf8(&line[..line.len() - 1]).map_err(|_| self.refused("a line that is no text"))
    }

    fn key(&mut self) -> Step<u64> {
        let line = self.line()?;
        line.parse().map_err(|_| self.refused("a reference that is no number"))
    }

    fn bytes_of_length<const N: usize>(&mut self) -> Step<()> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?;
        self.push(Value::Bytes(bytes.into()));
        Ok(())
    }

    fn text_of_length<const N: usize>(&mut self) -> Step<()> {
        let length = self.length::<N>()?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.refused("a text that is no UTF-8"))?;
        self.push(Value::Text(text.into()));
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Step<usize> {
        // What lies below a mark belongs to someone else.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.refused("an empty stack"));
        }
        Ok(self.stack.pop().expect("there is something above the floor"))
    }

    fn since_mark(&mut self) -> Step<Vec<usize>> {
        let mark = self.marks.pop().ok_or_else(|| self.refused("an end without its beginning"))?;
        Ok(self.stack.split_off(mark))
    }

    /// LIST, TUPLE, DICT, and TUPLE1 to TUPLE3.
    fn collect(&mut self, op: u8) -> Step<()> {
        let items = match op {
            b'l' | b't' | b'd' => self.since_mark()?,
            _ => {
                let mut items = (0..=op - 0x85).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
                items.reverse();
                items
            }
        };
        let value = match op {
            b'l' => Value::List(items),
            b'd' => Value::Dictionary(self.pairs(&items)?),
            _ => Value::Tuple(items),
        };
        self.push(value);
        Ok(())
    }

    fn pairs(&self, items: &[usize]) -> Step<Vec<(usize, usize)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.refused("a key without its value"));
        }
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn add(&mut self, op: u8) -> Step<()> {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let pairs = if matches!(op, b's' | b'u') { self.pairs(&items)? } else { Vec::new() };
        let onto = *self.stack.last().ok_or_else(|| self.refused("an empty stack"))?;
        match (&mut self.values[onto], op) {
            (Value::List(list), b'a' | b'e') => list.extend(items),
            (Value::Dictionary(dictionary), b's' | b'u') => dictionary.extend(pairs),
            _ => return Err(self.refused("an item of something that is no list or dictionary")),
        }
        Ok(())
    }

    fn name(&mut self, module: &str, name: &str) -> Step<()> {
        // NumPy 2 calls `numpy.core` `numpy._core`.
        let known = match (module.replace("_core", "core").as_str(), name) {
            ("_codecs", "encode") => Known::Encode,
            ("numpy.core.multiarray", "_reconstruct") => Known::Reconstruct,
            ("numpy.core.multiarray", "scalar") => Known::Scalar,
            ("numpy.core.numeric", "_frombuffer") => Known::FromBuffer,
            ("numpy", "ndarray") => Known::Array,
            ("numpy", "dtype") => Known::Type,
            _ => return Err(self.refused(&format!("the name {module}.{name}"))),
        };
        self.push(Value::Name(known));
        Ok(())
    }

    /// REDUCE: calls a function that we know.
    fn call(&mut self) -> Step<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Name(function), Value::Tuple(arguments)) = (&self.values[function], &self.values[arguments]) else {
            return Err(self.refused("a call of something that is no function"));
        };
        let argument = |index: usize| arguments.get(index).map(|&at| &self.values[at]);
        let value = match (function, argument(0), argument(1)) {
            (Known::Encode, Some(Value::Text(text)), _) => {
                let bytes: Option<Vec<u8>> = text.chars().map(|letter| u8::try_from(letter).ok()).collect();
                Value::Bytes(bytes.ok_or_else(|| self.refused("a text beyond Latin-1 for bytes"))?.into())
            }
            (Known::Reconstruct, Some(Value::Name(Known::Array)), _) => Value::Array(None),
            (Known::Type, Some(Value::Text(kind)), _) => Value::Type(kind.clone().into_owned(), false),
            (Known::Type, Some(Value::Bytes(kind)), _) => {
                Value::Type(String::from_utf8_lossy(kind).into_owned(), false)
            }
            (Known::Scalar, Some(Value::Type(kind, is_big_endian)), Some(Value::Bytes(bytes))) => {
                match numbers(bytes, kind, *is_big_endian).as_deref() {
                    Some([number]) => Value::Number(*number),
                    _ => return Err(self.refused("a number of NumPy's that is not whole")),
                }
            }
            (Known::FromBuffer, Some(Value::Bytes(_)), Some(Value::Type(kind, is_big_endian))) => {
                let by_columns = matches!(argument(3), Some(Value::Text(order)) if order == "F");
                let shape = argument(2).and_then(|shape| self.shape(shape));
                let shape = shape.ok_or_else(|| self.refused("an array without a shape"))?;
                let (kind, is_big_endian) = (kind.clone(), *is_big_endian);
                Value::Array(Some(Array { shape, kind, is_big_endian, by_columns, data: arguments[0] }))
            }
            _ => return Err(self.refused("a call with arguments that do not fit")),
        };
        self.push(value);
        Ok(())
    }

    /// BUILD: gives an array or a type of `NumPy`'s its content.
    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let onto = *self.stack.last().ok_or_else(|| self.refused("an empty stack"))?;
        let Value::Tuple(state) = &self.values[state] else {
            return Err(self.refused("a content that is no tuple"));
        };
        let part = |index: usize| state.get(index).map(|&at| &self.values[at]);
        let built = match (&self.values[onto], part(1), part(2), part(3), part(4)) {
            (Value::Type(kind, _), Some(Value::Text(order)), ..) => Value::Type(kind.clone(), order == ">"),
            (Value::Type(kind, _), Some(Value::Bytes(order)), ..) => Value::Type(kind.clone(), order.as_ref() == b">"),
            (
                Value::Array(_),
                Some(shape),
                Some(Value::Type(kind, is_big_endian)),
                Some(Value::Number(by_columns)),
                Some(Value::Bytes(_)),
            ) => {
                let shape = self.shape(shape).ok_or_else(|| self.refused("an array without a shape"))?;
                let (kind, is_big_endian) = (kind.clone(), *is_big_endian);
                Value::Array(Some(Array { shape, kind, is_big_endian, by_columns: *by_columns != 0, data: state[4] }))
            }
            _ => return Err(self.refused("a content that does not fit")),
        };
        self.values[onto] = built;
        Ok(())
    }

    fn shape(&self, value: &Value<'a>) -> Option<Vec<usize>> {
        let Value::Tuple(sizes) = value else { return None };
        let size = |&at: &usize| match self.values[at] {
            Value::Number(size) => usize::try_from(size).ok(),
            _ => None,
        };
        sizes.iter().map(size).collect()
    }
}
