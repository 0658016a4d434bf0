//! From text to instructions.

use super::instruction::{Instruction, Operand, Operation, Special, operation};
use super::memory::GLOBALS;
use super::{Kernel, Module};
use std::collections::HashMap;

/// Where the names of variables lie.
type Symbols = HashMap<String, u64>;

pub(super) fn module(text: &str) -> Result<Module, String> {
    let mut module = Module { kernels: HashMap::new(), globals: Vec::new() };
    let mut symbols = Symbols::new();
    // Shared arrays of the module belong to every kernel of it.
    let mut shared = 0;
    let mut reader = Reader { text, at: 0, line: 1 };
    while let Some(statement) = reader.next() {
        let at = |problem: String| format!("line {} of the PTX: {problem}", statement.line);
        let words: Vec<&str> = statement.text.split_whitespace().collect();
        if words.contains(&".entry") {
            let (name, kernel) = entry(&statement.text, &mut reader, &symbols, shared)?;
            module.kernels.insert(name, kernel);
        } else if words.contains(&".shared") {
            declare(&statement.text, &mut symbols, &mut shared).map_err(at)?;
        } else if words.contains(&".global") || words.contains(&".const") {
            let mut end = module.globals.len();
            let (declaration, values) = statement.text.split_once('=').unwrap_or((&statement.text, ""));
            let (name, start) = declare(declaration, &mut symbols, &mut end).map_err(at)?;
            symbols.insert(name, GLOBALS + start as u64);
            module.globals.resize(end, 0);
            let values = values.trim().trim_matches(['{', '}']).split(',').filter(|value| !value.trim().is_empty());
            for (byte, value) in module.globals[start..].iter_mut().zip(values) {
                *byte = value.trim().parse().map_err(|_| at(format!("`{value}` is not a byte")))?;
            }
        } else if words.contains(&".func") {
            return Err(at("functions are not known: everything has to be inlined".to_owned()));
        }
    }
    Ok(module)
}

/// A kernel from its head, up to the brace that closes it.
fn entry(head: &str, reader: &mut Reader, module: &Symbols, shared: usize) -> Result<(String, Kernel), String> {
    let head_line = reader.line;
    let at = |line: usize, problem: String| format!("line {line} of the PTX: {problem}");
    let malformed = || at(head_line, "the head of a kernel is not understood".to_owned());
    let (name, rest) = head.split_once(".entry").and_then(|(_, rest)| rest.split_once('(')).ok_or_else(malformed)?;
    let (parameters, attributes) = rest.split_once(')').ok_or_else(malformed)?;
    let mut kernel = Kernel { shared, ..Kernel::default() };
    let mut symbols = module.clone();
    declare(parameters.trim(), &mut symbols, &mut kernel.arguments).map_err(|problem| at(head_line, problem))?;
    let threads = attributes.split_once(".maxntid").map(|(_, threads)| threads.split(',').next().unwrap_or("").trim());
    kernel.threads = threads.and_then(|threads| threads.parse().ok()).ok_or_else(malformed)?;

    let (mut registers, mut labels, mut statements) = (HashMap::new(), HashMap::new(), Vec::new());
    let mut depth = 1;
    while depth > 0 {
        let Some(statement) = reader.next() else { return Err(at(reader.line, "a kernel does not end".to_owned())) };
        let text = statement.text.as_str();
        match text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if text.starts_with(".reg") || text.starts_with(".pragma") => {}
            _ if text.starts_with(".shared") => {
                declare(text, &mut symbols, &mut kernel.shared).map_err(|problem| at(statement.line, problem))?;
            }
            _ if text.starts_with(".local") => {
                declare(text, &mut symbols, &mut kernel.local).map_err(|problem| at(statement.line, problem))?;
            }
            _ => match text.strip_suffix(':') {
                Some(label) => {
                    labels.insert(label.to_owned(), statements.len() as u64);
                }
                None => statements.push(statement),
            },
        }
    }
    for statement in statements {
        let decoded = instruction(&statement, &mut registers, &symbols, &labels);
        kernel.instructions.push(decoded.map_err(|problem| at(statement.line, problem))?);
    }
    kernel.registers = registers.len();
    Ok((name.trim().to_owned(), kernel))
}

/// Puts a variable such as `.shared .align 16 .b8 tile[1024]` behind `end`: its name, and where it begins.
fn declare(text: &str, symbols: &mut Symbols, end: &mut usize) -> Result<(String, usize), String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let Some(last) = words.last() else { return Err("a kernel without an argument is not known".to_owned()) };
    let (name, count) = match last.split_once('[') {
        Some((name, count)) => {
            (name, count.trim_end_matches(']').parse().map_err(|_| format!("`{last}` has no size"))?)
        }
        None => (*last, 1),
    };
    let element =
        words.iter().rev().skip(1).find_map(|word| super::instruction::Type::parse(word.trim_start_matches('.')));
    let bytes = element.ok_or_else(|| format!("`{text}` has no type"))?.bytes() as usize;
    let align = words.iter().position(|word| *word == ".align").and_then(|at| words.get(at + 1)?.parse().ok());
    let start = end.next_multiple_of(align.unwrap_or(bytes));
    symbols.insert(name.to_owned(), start as u64);
    *end = start + bytes * count;
    Ok((name.to_owned(), start))
}

fn instruction(
    statement: &Statement,
    registers: &mut HashMap<String, usize>,
    symbols: &Symbols,
    labels: &Symbols,
) -> Result<Instruction, String> {
    let mut register = |name: &str| {
        let next = registers.len();
        *registers.entry(name.to_owned()).or_insert(next)
    };
    let (mut text, mut guard) = (statement.text.as_str(), None);
    if let Some(rest) = text.strip_prefix('@') {
        let (predicate, rest) = rest.split_once(char::is_whitespace).ok_or("a guard without an instruction")?;
        let negated = predicate.starts_with('!');
        guard = Some((register(predicate.trim_start_matches('!')), negated));
        text = rest.trim_start();
    }
    let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let operation = operation(opcode).ok_or_else(|| format!("the instruction {opcode} is not known"))?;
    let operands: Result<Vec<_>, _> = split(rest)
        .into_iter()
        .map(|text| match (operation, labels.get(text)) {
            (Operation::Branch, Some(&label)) => Ok(Operand::Immediate(label)),
            _ => operand(text, &mut register, symbols),
        })
        .collect();
    Ok(Instruction { guard, operation, operands: operands?, line: statement.line })
}

/// Operands at the commas (and, after the result of a shuffle, the bar) that are in no bracket.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' | '|' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    parts.extend((!last.is_empty()).then_some(last));
    parts
}

fn operand(text: &str, register: &mut impl FnMut(&str) -> usize, symbols: &Symbols) -> Result<Operand, String> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        let items: Result<Vec<_>, _> = inner.split(',').map(|item| operand(item, register, symbols)).collect();
        return Ok(Operand::Vector(items?));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = offset.trim().parse().map_err(|_| format!("`{text}` is not an address"))?;
        return Ok(Operand::Address(Box::new(operand(base, register, symbols)?), offset));
    }
    if text == "_" {
        return Ok(Operand::Nowhere);
    }
    if let Some((name, axis)) = text.split_once('.') {
        let axis = ["x", "y", "z"].iter().position(|known| *known == axis);
        return match (name, axis) {
            ("%tid", Some(axis)) => Ok(Operand::Special(Special::Thread(axis))),
            ("%ntid", Some(axis)) => Ok(Operand::Special(Special::Threads(axis))),
            ("%ctaid", Some(axis)) => Ok(Operand::Special(Special::Block(axis))),
            ("%nctaid", Some(axis)) => Ok(Operand::Special(Special::Blocks(axis))),
            _ => Err(format!("the register {text} is not known")),
        };
    }
    if text.starts_with('%') {
        return Ok(Operand::Register(register(text)));
    }
    let hexadecimal = ["0f", "0F", "0d", "0D", "0x"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let number = match hexadecimal {
        Some(digits) => u64::from_str_radix(digits.trim_end_matches('U'), 16).ok(),
        None => text.parse::<i64>().map(|number| number as u64).or_else(|_| text.parse()).ok(),
    };
    let value = number.or_else(|| symbols.get(text).copied());
    value.map(Operand::Immediate).ok_or_else(|| format!("the operand `{text}` is not known"))
}

/// A statement without its semicolon, a label with its colon, or a brace.
struct Statement {
    text: String,
    line: usize,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Iterator for Reader<'_> {
    type Item = Statement;

    fn next(&mut self) -> Option<Statement> {
        let (mut text, mut line) = (String::new(), 0);
        loop {
            let rest = &self.text[self.at..];
            let c = rest.chars().next()?;
            if rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            // A brace inside of a statement is a vector's, unless it opens the body of a kernel.
            let head = text.contains(".entry") && text.contains(')');
            if c == '{' && head {
                self.at += 1;
                return Some(Statement { text: text.trim().to_owned(), line });
            }
            self.at += c.len_utf8();
            if c == '\n' {
                self.line += 1;
                // These lines have no semicolon.
                if [".version", ".target", ".address_size"].iter().any(|directive| text.starts_with(directive)) {
                    text.clear();
                    continue;
                }
            }
            if text.is_empty() {
                if c.is_whitespace() {
                    continue;
                }
                line = self.line;
                if c == '{' || c == '}' {
                    return Some(Statement { text: c.to_string(), line });
                }
            }
            if c == ';' {
                return Some(Statement { text: text.trim().to_owned(), line });
            }
            text.push(c);
            if c == ':' && text.starts_with('$') {
                return Some(Statement { text, line });
            }
        }
    }
}
