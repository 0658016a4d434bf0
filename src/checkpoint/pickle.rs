//! Python's pickles, read as data.
//!
//! A pickle is a program for a small stack machine. This one keeps what the program builds as nodes that name each other by
//! number, so that shared and circular values cost nothing; a call is only recorded, with its arguments. Strings and bytes
//! stay where they are in the file. The opcodes are those of `pickletools` for protocols 2 to 5, which all of PyTorch writes.

use super::constructors;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ops::Range;

/// Nodes that a pickle may have: some 100 times those of the largest public network.
const MOST_NODES: usize = 1 << 24;
/// Axes of a tensor, at most.
const MOST_AXES: usize = 8;
/// Depth to which values are followed.
const DEPTH: usize = 32;
/// Bytes of a string that may be a name. A pickle can have one string in many places at no cost, so it costs to read each.
const LONGEST_NAME: usize = 1024;
/// Values that a JSON takes, at most: shared ones are written out.
const JSON_VALUES: usize = 1 << 16;

/// A node of a [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u32);

/// What a pickle builds. Ranges are places in the file.
#[derive(Debug)]
pub enum Node {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer: little-endian, in two's complement.
    Long(Range<usize>),
    /// A float.
    Float(f64),
    /// A string, which may be no UTF-8.
    Str(Range<usize>),
    /// Bytes.
    Bytes(Range<usize>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A set.
    Set(Vec<Id>),
    /// A dictionary, in order.
    Dict(Vec<(Id, Id)>),
    /// A class or function: its module and name.
    Global(String),
    /// What a class or function would make.
    Object(Box<Object>),
    /// What lies outside of the pickle, by its name for it.
    Persistent(Id),
}

/// A call that was not made, and what would have been done to its result.
#[derive(Debug)]
pub struct Object {
    /// The class or function.
    constructor: Id,
    /// Its arguments.
    args: Id,
    /// What would be given to `__setstate__`.
    state: Option<Id>,
    /// Items of a subclass of `dict`.
    items: Vec<(Id, Id)>,
}

/// A pickle in the bytes of a file.
#[derive(Debug)]
pub struct Pickle<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    root: Id,
    end: usize,
}

type Outcome<T> = std::result::Result<T, String>;

impl<'a> Pickle<'a> {
    /// Reads the pickle at `start`.
    ///
    /// # Errors
    /// What is wrong with it, for behind the file's name: it is cut off or damaged, or names a constructor that is not known.
    pub fn read(bytes: &'a [u8], start: usize) -> Outcome<Self> {
        let mut machine =
            Machine { bytes, at: start, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Self { bytes, nodes: machine.nodes, root, end: machine.at })
    }

    /// The value that the pickle holds.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The place behind it.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The node of this number.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// All nodes, in the order in which they were made.
    pub fn nodes(&self) -> impl Iterator<Item = (Id, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (Id(index as u32), node))
    }

    /// A string, unless it is no UTF-8 or longer than any name.
    pub fn str(&self, id: Id) -> Option<&'a str> {
        let Node::Str(range) = self.node(id) else { return None };
        (range.len() <= LONGEST_NAME).then_some(())?;
        std::str::from_utf8(&self.bytes[range.clone()]).ok()
    }

    /// An integer that is a size.
    pub fn size(&self, id: Id) -> Option<usize> {
        let Node::Int(value) = self.node(id) else { return None };
        usize::try_from(*value).ok()
    }

    /// The elements of a tuple.
    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        let Node::Tuple(elements) = self.node(id) else { return None };
        Some(elements)
    }

    /// The sizes in a tuple, or in a `torch.Size`: of a tensor, so of few axes.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let elements = match self.call(id) {
            Some(("torch.Size", [sizes])) => self.tuple(*sizes),
            _ => self.tuple(id),
        };
        elements.filter(|elements| elements.len() <= MOST_AXES)?.iter().map(|&size| self.size(size)).collect()
    }

    /// The bytes of a long integer.
    pub fn long(&self, id: Id) -> Option<&'a [u8]> {
        let Node::Long(range) = self.node(id) else { return None };
        Some(&self.bytes[range.clone()])
    }

    /// A class or function.
    pub fn global(&self, id: Id) -> Option<&str> {
        let Node::Global(name) = self.node(id) else { return None };
        Some(name)
    }

    /// A recorded call: the name of its constructor and its arguments.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Node::Object(object) = self.node(id) else { return None };
        Some((self.global(object.constructor)?, self.tuple(object.args)?))
    }

    /// What a recorded call's result would be given to `__setstate__`.
    pub fn state(&self, id: Id) -> Option<Id> {
        let Node::Object(object) = self.node(id) else { return None };
        object.state
    }

    /// The items of a dictionary, or of an object that is one.
    pub fn items(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(items) => Some(items),
            Node::Object(object)
                if self.global(object.constructor).is_some_and(|name| constructors::DICTS.contains(&name)) =>
            {
                Some(&object.items)
            }
            _ => None,
        }
    }

    /// The value of a dictionary at a string; of the last item, where there are several.
    pub fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let is_key = |(id, _): &&(Id, Id)| matches!(self.node(*id), Node::Str(range) if self.bytes[range.clone()] == *key.as_bytes());
        Some(self.items(dict)?.iter().rfind(is_key)?.1)
    }

    /// Plain data as JSON; null for what has no place there: objects, numbers that are not finite, what lies too deep.
    pub fn json(&self, id: Id) -> Value {
        self.json_within(id, DEPTH, &mut { JSON_VALUES })
    }

    fn json_within(&self, id: Id, depth: usize, left: &mut usize) -> Value {
        if depth == 0 || *left == 0 {
            return Value::Null;
        }
        *left -= 1;
        let mut json = |id| self.json_within(id, depth - 1, left);
        match self.node(id) {
            Node::Bool(value) => json!(value),
            Node::Int(value) => json!(value),
            Node::Float(value) => json!(value),
            Node::Str(_) => json!(self.str(id)),
            Node::Tuple(elements) | Node::List(elements) => elements.iter().map(|&element| json(element)).collect(),
            _ => self.items(id).map_or(Value::Null, |items| {
                let named = items.iter().filter_map(|&(key, value)| Some((self.str(key)?.to_owned(), json(value))));
                Value::Object(named.collect())
            }),
        }
    }
}

/// The machine that runs a pickle.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Outcome<Id> {
        loop {
            let at = self.at;
            let [opcode] = self.array()?;
            match opcode {
                0x80 => {
                    let [protocol] = self.array()?;
                    if !(2..=5).contains(&protocol) {
                        return Err(format!("is a pickle of protocol {protocol}; 2 to 5 are read"));
                    }
                }
                // FRAME: the length of what comes is of no use with all bytes at hand.
                0x95 => drop(self.array::<8>()?),
                b'.' => return self.pop(),

                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.marked()?),
                b'2' => self.stack.push(self.top()?),

                b'N' => self.push(Node::None)?,
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let [value] = self.array()?;
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a | 0x8b => {
                    let range = if opcode == 0x8a { self.sized::<1>()? } else { self.sized::<4>()? };
                    let long = long(&self.bytes[range.clone()]);
                    self.push(long.map_or(Node::Long(range), Node::Int))?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value))?;
                }

                0x8c | b'U' => self.push_range::<1>(Node::Str)?,
                b'X' | b'T' => self.push_range::<4>(Node::Str)?,
                0x8d => self.push_range::<8>(Node::Str)?,
                b'C' => self.push_range::<1>(Node::Bytes)?,
                b'B' => self.push_range::<4>(Node::Bytes)?,
                0x8e | 0x96 => self.push_range::<8>(Node::Bytes)?,

                b')' => self.push(Node::Tuple(Vec::new()))?,
                b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                0x8f => self.push(Node::Set(Vec::new()))?,
                b't' => {
                    let elements = self.marked()?;
                    self.push(Node::Tuple(elements))?;
                }
                0x85..=0x87 => {
                    let count = (opcode - 0x84).into();
                    let elements = self.popped(count)?;
                    self.push(Node::Tuple(elements))?;
                }
                b'l' => {
                    let elements = self.marked()?;
                    self.push(Node::List(elements))?;
                }
                0x91 => {
                    let elements = self.marked()?;
                    self.push(Node::Set(elements))?;
                }
                b'd' => {
                    let items = pairs(&self.marked()?)?;
                    self.push(Node::Dict(items))?;
                }
                b'a' => {
                    let element = self.pop()?;
                    self.append(&[element])?;
                }
                b'e' | 0x90 => {
                    let elements = self.marked()?;
                    self.append(&elements)?;
                }
                b's' => {
                    let item = self.popped(2)?;
                    self.set_items(&item)?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set_items(&items)?;
                }

                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(&module, &name)?;
                }
                0x93 => {
                    let [module, name] = self.popped(2)?[..] else { unreachable!("two were popped") };
                    let text = |id: Id| match &self.nodes[id.0 as usize] {
                        Node::Str(range) => Ok(String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned()),
                        _ => Err(damaged("a constructor's name is no string")),
                    };
                    let (module, name) = (text(module)?, text(name)?);
                    self.push_global(&module, &name)?;
                }
                // REDUCE and NEWOBJ: a call is recorded.
                b'R' | 0x81 => {
                    let args = self.pop()?;
                    self.push_object(args)?;
                }
                // NEWOBJ_EX: with the named arguments behind the others.
                0x92 => {
                    let both = self.popped(2)?;
                    let args = self.add(Node::Tuple(both))?;
                    self.push_object(args)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    match self.top_node()? {
                        Node::Object(object) => object.state = Some(state),
                        _ => return Err(damaged("a state is set on plain data")),
                    }
                }
                b'Q' => {
                    let name = self.pop()?;
                    self.push(Node::Persistent(name))?;
                }

                b'q' => {
                    let [index] = self.array()?;
                    self.memo.insert(index.into(), self.top()?);
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.memo.insert(index, self.top()?);
                }
                0x94 => {
                    self.memo.insert(self.memo.len() as u32, self.top()?);
                }
                b'h' => {
                    let [index] = self.array()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index)?;
                }
                other => {
                    let problem = format!("has opcode {other:#04x} at byte {at}, which is none of protocols 2 to 5");
                    return Err(damaged(&problem));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Outcome<Range<usize>> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let range = self.at..end.ok_or_else(|| damaged("it is cut off"))?;
        self.at = range.end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let range = self.take(N)?;
        Ok(self.bytes[range].try_into().expect("as many bytes as were taken"))
    }

    /// A length of N bytes and as many bytes.
    fn sized<const N: usize>(&mut self) -> Outcome<Range<usize>> {
        let mut length = [0; 8];
        length[..N].copy_from_slice(&self.array::<N>()?);
        self.take(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Outcome<String> {
        let length = self.bytes[self.at..].iter().position(|&byte| byte == b'\n');
        let range = self.take(length.ok_or_else(|| damaged("it is cut off"))?)?;
        self.at += 1;
        Ok(String::from_utf8_lossy(&self.bytes[range]).into_owned())
    }

    fn add(&mut self, node: Node) -> Outcome<Id> {
        if self.nodes.len() == MOST_NODES {
            return Err(format!("is a pickle of more than {MOST_NODES} values, far more than a network has"));
        }
        self.nodes.push(node);
        Ok(Id(self.nodes.len() as u32 - 1))
    }

    fn push(&mut self, node: Node) -> Outcome<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_range<const N: usize>(&mut self, node: impl Fn(Range<usize>) -> Node) -> Outcome<()> {
        let range = self.sized::<N>()?;
        self.push(node(range))
    }

    fn push_global(&mut self, module: &str, name: &str) -> Outcome<()> {
        let name = format!("{module}.{name}");
        if constructors::is_known(&name) {
            return self.push(Node::Global(name));
        }
        // What is not known may be long or no text.
        let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        Err(format!(
            "needs {shown}, which is none of the constructors of tensors and plain data that are read, and nothing of a \
             pickle is run; save the network's tensors alone, as `torch.save(model.state_dict(), FILE)` or safetensors"
        ))
    }

    fn push_object(&mut self, args: Id) -> Outcome<()> {
        let constructor = self.pop()?;
        if !matches!(self.nodes[constructor.0 as usize], Node::Global(_)) {
            return Err(damaged("it calls what is no constructor"));
        }
        self.push(Node::Object(Box::new(Object { constructor, args, state: None, items: vec![] })))
    }

    /// Nothing below the last mark can be popped, as in Python.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Outcome<Id> {
        let top = self.stack[self.floor()..].last().copied();
        top.ok_or_else(|| damaged("it takes more values than it made"))
    }

    fn top_node(&mut self) -> Outcome<&mut Node> {
        let top = self.top()?;
        Ok(&mut self.nodes[top.0 as usize])
    }

    fn pop(&mut self) -> Outcome<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn popped(&mut self, count: usize) -> Outcome<Vec<Id>> {
        if self.stack.len() - self.floor() < count {
            return Err(damaged("it takes more values than it made"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn marked(&mut self) -> Outcome<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("it takes more values than it made"))?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, more: &[Id]) -> Outcome<()> {
        match self.top_node()? {
            Node::List(elements) | Node::Set(elements) => elements.extend(more),
            // Of a subclass of `list`; no network is in one.
            Node::Object(_) => {}
            _ => return Err(damaged("it appends to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, more: &[Id]) -> Outcome<()> {
        let more = pairs(more)?;
        match self.top_node()? {
            Node::Dict(items) => items.extend(more),
            Node::Object(object) => object.items.extend(more),
            _ => return Err(damaged("it sets items of what is no dictionary")),
        }
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Outcome<()> {
        let id = self.memo.get(&index).copied();
        self.stack.push(id.ok_or_else(|| damaged("it recalls what it never kept"))?);
        Ok(())
    }
}

fn damaged(how: &str) -> String {
    format!("is not a whole Python pickle: {how}")
}

fn pairs(flat: &[Id]) -> Outcome<Vec<(Id, Id)>> {
    match flat.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(damaged("a key has no value")),
    }
}

/// A little-endian integer in two's complement, where it fits.
fn long(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut value = [if negative { 0xff } else { 0 }; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        Pickle::read(bytes, 0).unwrap_err()
    }

    #[test]
    fn plain_data_is_what_python_made_it_of() {
        // {"a": (1, -2, 300, True), "b": [0.5, None, 2**40], 3: "x"}
        let bytes = b"\x80\x04}(\x8c\x01a(K\x01J\xfe\xff\xff\xffM\x2c\x01\x88t\x8c\x01b](G\x3f\xe0\0\0\0\0\0\0N\
            \x8a\x06\0\0\0\0\0\x01eK\x03\x8c\x01xu.rest";
        let pickle = Pickle::read(bytes, 0).unwrap();
        assert_eq!(&bytes[pickle.end()..], b"rest");
        let want = json!({ "a": [1, -2, 300, true], "b": [0.5, null, 1u64 << 40] });
        assert_eq!(pickle.json(pickle.root()), want);
        assert_eq!(pickle.size(pickle.items(pickle.root()).unwrap()[2].0), Some(3));
    }

    #[test]
    fn calls_are_recorded_with_their_arguments_and_what_would_follow() {
        // OrderedDict() with an item and a state, in a tuple with itself.
        let bytes = b"\x80\x02ccollections\nOrderedDict\n)Rq\x05X\x01\0\0\0kK\x07s}bh\x05\x86.";
        let pickle = Pickle::read(bytes, 0).unwrap();
        let &[first, second] = pickle.tuple(pickle.root()).unwrap() else { panic!("two") };
        assert_eq!(first, second);
        assert_eq!(pickle.call(first), Some(("collections.OrderedDict", &[][..])));
        assert_eq!(pickle.size(pickle.get(first, "k").unwrap()), Some(7));
        assert!(pickle.state(first).is_some());
    }

    #[test]
    fn what_is_no_pickle_of_data_is_refused() {
        assert!(
            refusal(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").starts_with("needs builtins.eval, which is none")
        );
        assert_eq!(refusal(b"\x80\x01."), "is a pickle of protocol 1; 2 to 5 are read");
        assert_eq!(refusal(b"\x80\x02K"), "is not a whole Python pickle: it is cut off");
        assert_eq!(refusal(b"\x80\x02K\x01(0."), "is not a whole Python pickle: it takes more values than it made");
        assert_eq!(refusal(b"\x80\x02K\x01)R."), "is not a whole Python pickle: it calls what is no constructor");
        assert!(refusal(b"\x80\x02ios\nsystem\n").contains("opcode 0x69 at byte 2"));
    }

    #[test]
    fn integers_are_of_as_many_bytes_as_they_take() {
        assert_eq!(
            [long(&[]), long(&[0xff]), long(&[0, 0x80]), long(&[1; 9])],
            [Some(0), Some(-1), Some(-32768), None]
        );
    }
}
