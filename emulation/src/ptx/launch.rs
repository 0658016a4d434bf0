//! Threads, and what they execute.

use super::instruction::{Atomic, Collective, Instruction, Operand, Operation, Space, Special, Type};
use super::memory::{Memory, POISON, generic, specific};
use super::warp::{Fragments, WARP, mma, source};
use super::{Kernel, Module, arithmetic};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    AtBarrier,
    InWarp,
    Done,
}

/// A copy of 16 bytes to shared memory that has not arrived.
#[derive(Clone, Copy, Debug)]
struct Copy {
    to: u64,
    from: u64,
    valid: bool,
    group: u64,
}

#[derive(Debug)]
struct Thread {
    index: u32,
    registers: Vec<u64>,
    local: Vec<u8>,
    next: usize,
    state: State,
    copies: Vec<Copy>,
    /// Groups of copies that were committed.
    groups: u64,
}

/// Where the threads of a block are.
#[derive(Clone, Copy, Debug)]
struct Place {
    block: [u32; 3],
    grid: [u32; 3],
    threads: u32,
}

pub(super) fn run(
    module: &Module,
    kernel: &Kernel,
    grid: [u32; 3],
    args: &[u8],
    outside: &mut [&mut [u8]],
) -> Result<(), String> {
    let mut shared = vec![0; kernel.shared];
    for z in 0..grid[2] {
        for y in 0..grid[1] {
            for x in 0..grid[0] {
                shared.fill(POISON);
                let memory = Memory { parameters: args, globals: &module.globals, shared: &mut shared, outside };
                let place = Place { block: [x, y, z], grid, threads: kernel.threads };
                let mut block = Block { kernel, place, memory };
                block.run().map_err(|problem| format!("block ({x}, {y}, {z}): {problem}"))?;
            }
        }
    }
    Ok(())
}

struct Block<'a, 'b> {
    kernel: &'a Kernel,
    place: Place,
    memory: Memory<'a, 'b>,
}

impl Block<'_, '_> {
    fn run(&mut self) -> Result<(), String> {
        let kernel = self.kernel;
        let mut threads: Vec<Thread> = (0..kernel.threads)
            .map(|index| Thread {
                index,
                // No number that a kernel could mistake for one of its own.
                registers: vec![0xdead_beef_7fff_dead; kernel.registers],
                local: vec![POISON; kernel.local],
                next: 0,
                state: State::Ready,
                copies: Vec::new(),
                groups: 0,
            })
            .collect();
        loop {
            let mut progress = false;
            for warp in threads.chunks_mut(WARP) {
                // A warp goes on until all of its lanes wait for other warps.
                while warp.iter().any(|thread| thread.state == State::Ready) {
                    progress = true;
                    for thread in warp.iter_mut().filter(|thread| thread.state == State::Ready) {
                        self.advance(thread)?;
                    }
                    self.serve(warp)?;
                }
            }
            let count = |state| threads.iter().filter(|thread| thread.state == state).count();
            let (done, at_barrier) = (count(State::Done), count(State::AtBarrier));
            if done == threads.len() {
                return Ok(());
            }
            if at_barrier == threads.len() {
                for thread in &mut threads {
                    thread.state = State::Ready;
                }
            } else if !progress {
                return Err(self.deadlock(&threads));
            }
        }
    }

    /// Why nothing goes on.
    fn deadlock(&self, threads: &[Thread]) -> String {
        let one = |state, what: &str| {
            let thread = threads.iter().find(|thread| thread.state == state)?;
            let line = self.kernel.instructions.get(thread.next.wrapping_sub(1)).map_or(0, |waiting| waiting.line);
            Some(format!("thread {} {what} (line {line} of the PTX)", thread.index))
        };
        let known = [
            one(State::AtBarrier, "waits at bar.sync"),
            one(State::InWarp, "waits for lanes of its mask"),
            one(State::Done, "has left the kernel"),
        ];
        known.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Runs a thread until it waits or ends.
    fn advance(&mut self, thread: &mut Thread) -> Result<(), String> {
        let kernel = self.kernel;
        while thread.state == State::Ready {
            let Some(instruction) = kernel.instructions.get(thread.next) else {
                thread.state = State::Done;
                break;
            };
            thread.next += 1;
            if let Some((predicate, negated)) = instruction.guard
                && (thread.registers[predicate] & 1 == 1) == negated
            {
                continue;
            }
            self.execute(instruction, thread).map_err(|problem| {
                format!("thread {}, line {} of the PTX: {problem}", thread.index, instruction.line)
            })?;
        }
        Ok(())
    }

    fn value(&self, thread: &Thread, operand: &Operand) -> Result<u64, String> {
        Ok(match operand {
            Operand::Register(register) => thread.registers[*register],
            Operand::Immediate(value) => *value,
            Operand::Special(Special::Thread(axis)) => u64::from(if *axis == 0 { thread.index } else { 0 }),
            Operand::Special(Special::Threads(axis)) => u64::from(if *axis == 0 { self.place.threads } else { 1 }),
            Operand::Special(Special::Block(axis)) => self.place.block[*axis].into(),
            Operand::Special(Special::Blocks(axis)) => self.place.grid[*axis].into(),
            Operand::Address(base, offset) => self.value(thread, base)?.wrapping_add_signed(*offset),
            Operand::Vector(_) | Operand::Nowhere => return Err(format!("{operand:?} is not a value")),
        })
    }

    fn execute(&mut self, instruction: &Instruction, thread: &mut Thread) -> Result<(), String> {
        let operands = instruction.operands.as_slice();
        let operand = |place: usize| operands.get(place).ok_or("an operand is missing");
        let get = |place: usize| self.value(thread, operand(place)?);
        let result = match instruction.operation {
            Operation::Move(kind) => return self.assign(kind, operands, thread),
            Operation::Convert { to, from, rounding, saturate } => {
                arithmetic::convert(to, from, rounding, saturate, get(1)?)?
            }
            Operation::Integral { kind, rounding } => arithmetic::integral_bits(kind, rounding, get(1)?),
            Operation::ToTf32 => arithmetic::to_tf32(get(1)?),
            Operation::Generic { space, back: false } => generic(space, get(1)?),
            Operation::Generic { space, back: true } => specific(space, get(1)?),
            Operation::Unary(what, kind) => arithmetic::unary(what, kind, get(1)?)?,
            Operation::Binary(what, kind, rounding) => arithmetic::binary(what, kind, rounding, get(1)?, get(2)?)?,
            Operation::MultiplyAdd { kind, wide } => arithmetic::multiply_add(kind, wide, [get(1)?, get(2)?, get(3)?])?,
            Operation::FusedMultiplyAdd { kind, rounding, saturate } => {
                arithmetic::fused(kind, rounding, saturate, [get(1)?, get(2)?, get(3)?])?
            }
            Operation::Permute => arithmetic::permute(get(1)?, get(2)?, get(3)?),
            Operation::InsertBits(kind) => arithmetic::insert_bits(kind, get(1)?, get(2)?, get(3)?, get(4)?),
            Operation::Select(kind) => kind.truncate(get(if get(3)? & 1 == 1 { 1 } else { 2 })?),
            Operation::Compare { kind, comparison, unordered } => {
                arithmetic::compare(kind, comparison, unordered, get(1)?, get(2)?)?.into()
            }
            Operation::Load { space, kind } => return self.load(space, kind, operands, thread),
            Operation::Store { space, kind } => return self.store(space, kind, operands, thread),
            Operation::Atomic { space, kind, what } => {
                let (address, with) = (get(1)?, kind.truncate(get(2)?));
                let bytes = kind.bytes() as usize;
                let place = self.memory.write(&mut thread.local, space, address, bytes)?;
                let old = integer(place);
                let new = match what {
                    Atomic::Add => old.wrapping_add(with),
                    Atomic::Or => old | with,
                    Atomic::Increment if old >= with => 0,
                    Atomic::Increment => old + 1,
                };
                place.copy_from_slice(&new.to_le_bytes()[..bytes]);
                old
            }
            Operation::CopyBegin => {
                // The fourth operand is how many bytes are read; the rest are zeros.
                let (to, from, bytes) = (get(0)?, get(1)?, if operands.len() > 3 { get(3)? } else { 16 });
                if get(2)? != 16 || !matches!(bytes, 0 | 16) || from % 16 != 0 {
                    return Err("a copy is not of 16 bytes on boundaries of 16, or of none".to_owned());
                }
                self.memory.write(&mut thread.local, Space::Shared, to, 16)?.fill(POISON);
                thread.copies.push(Copy { to, from, valid: bytes == 16, group: thread.groups });
                return Ok(());
            }
            Operation::CopyCommit => {
                thread.groups += 1;
                return Ok(());
            }
            Operation::CopyWait => {
                let pending = get(0)?;
                return self.arrive(thread, pending);
            }
            Operation::Fence => return Ok(()),
            Operation::Branch => {
                thread.next = get(0)? as usize;
                return Ok(());
            }
            Operation::Return => {
                thread.state = State::Done;
                return Ok(());
            }
            Operation::Barrier => {
                thread.state = State::AtBarrier;
                return Ok(());
            }
            Operation::Collective(_) => {
                thread.state = State::InWarp;
                return Ok(());
            }
        };
        put(thread, operand(0)?, result)
    }

    /// `mov`, which also takes a value apart into a vector of registers, or puts it together.
    fn assign(&self, kind: Type, operands: &[Operand], thread: &mut Thread) -> Result<(), String> {
        match operands {
            [Operand::Vector(parts), value] => {
                let value = self.value(thread, value)?;
                let bits = 8 * kind.bytes() as usize / parts.len();
                for (place, part) in parts.iter().enumerate() {
                    put(thread, part, value >> (bits * place) & ((1 << bits) - 1))?;
                }
                Ok(())
            }
            [to, Operand::Vector(parts)] => {
                let bits = 8 * kind.bytes() as usize / parts.len();
                let mut value = 0;
                for (place, part) in parts.iter().enumerate() {
                    value |= (self.value(thread, part)? & ((1 << bits) - 1)) << (bits * place);
                }
                put(thread, to, value)
            }
            [to, value] => {
                let value = kind.truncate(self.value(thread, value)?);
                put(thread, to, value)
            }
            _ => Err("mov has two operands".to_owned()),
        }
    }

    fn load(&self, space: Space, kind: Type, operands: &[Operand], thread: &mut Thread) -> Result<(), String> {
        let [to, from] = operands else { return Err("a load has two operands".to_owned()) };
        let address = self.value(thread, from)?;
        let to = match to {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        let bytes = kind.bytes() as usize;
        let mut values = [0; 4];
        let read = self.memory.read(&thread.local, space, address, bytes * to.len())?;
        values.iter_mut().zip(read.chunks(bytes)).for_each(|(value, bytes)| *value = integer(bytes));
        for (part, value) in to.iter().zip(values) {
            // A load extends to the register's width; registers of signed integers by their sign.
            let value = match kind {
                Type::Signed(bytes) => ((value << (64 - 8 * bytes)) as i64 >> (64 - 8 * bytes)) as u64,
                _ => value,
            };
            put(thread, part, value)?;
        }
        Ok(())
    }

    fn store(&mut self, space: Space, kind: Type, operands: &[Operand], thread: &mut Thread) -> Result<(), String> {
        let [to, from] = operands else { return Err("a store has two operands".to_owned()) };
        let address = self.value(thread, to)?;
        let from = match from {
            Operand::Vector(parts) => parts.as_slice(),
            single => std::slice::from_ref(single),
        };
        let bytes = kind.bytes() as usize;
        let mut values = [0; 4];
        for (value, part) in values.iter_mut().zip(from) {
            *value = self.value(thread, part)?;
        }
        let place = self.memory.write(&mut thread.local, space, address, bytes * from.len())?;
        for (place, value) in place.chunks_mut(bytes).zip(values) {
            place.copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
        Ok(())
    }

    /// Lets copies arrive until at most `pending` groups are under way.
    fn arrive(&mut self, thread: &mut Thread, pending: u64) -> Result<(), String> {
        let arrived = thread.copies.iter().take_while(|copy| copy.group + pending < thread.groups).count();
        for copy in thread.copies.drain(..arrived) {
            let mut bytes = [0; 16];
            if copy.valid {
                bytes.copy_from_slice(self.memory.read(&[], Space::Global, copy.from, 16)?);
            }
            self.memory.write(&mut [], Space::Shared, copy.to, 16)?.copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Serves the lanes of a warp whose partners have all come.
    fn serve(&self, warp: &mut [Thread]) -> Result<(), String> {
        let all = if warp.len() == WARP { u32::MAX } else { (1 << warp.len()) - 1 };
        let mut waiting = 0u32;
        for (lane, thread) in warp.iter().enumerate() {
            waiting |= u32::from(thread.state == State::InWarp) << lane;
        }
        while waiting != 0 {
            let first = waiting.trailing_zeros() as usize;
            let next = warp[first].next;
            let instruction = &self.kernel.instructions[next - 1];
            let at = |problem: String| format!("line {} of the PTX: {problem}", instruction.line);
            let mask = self.mask(instruction, &warp[first]).map_err(at)? & all;
            if mask >> first & 1 == 0 {
                return Err(at(format!("thread {} is not of the mask it names", warp[first].index)));
            }
            if mask & !waiting != 0 {
                waiting &= !(1 << first);
                continue;
            }
            let lanes: Vec<usize> = (0..warp.len()).filter(|lane| mask >> lane & 1 == 1).collect();
            for &lane in &lanes {
                if warp[lane].next != next {
                    return Err(at("the lanes of a warp meet at different operations".to_owned()));
                }
                if self.mask(instruction, &warp[lane]).map_err(at)? & all != mask {
                    return Err(at("the lanes of a warp name different masks".to_owned()));
                }
            }
            self.perform(instruction, warp, &lanes).map_err(at)?;
            for &lane in &lanes {
                warp[lane].state = State::Ready;
            }
            waiting &= !mask;
        }
        Ok(())
    }

    /// The lanes that an instruction of a warp is for, as this one has it.
    fn mask(&self, instruction: &Instruction, thread: &Thread) -> Result<u32, String> {
        let last = instruction.operands.last().ok_or("an operand is missing")?;
        match instruction.operation {
            Operation::Collective(Collective::Mma(_)) => Ok(u32::MAX),
            _ => Ok(self.value(thread, last)? as u32),
        }
    }

    fn perform(&self, instruction: &Instruction, warp: &mut [Thread], lanes: &[usize]) -> Result<(), String> {
        let operands = instruction.operands.as_slice();
        match instruction.operation {
            Operation::Collective(Collective::Shuffle(what)) => {
                // d, or d|p; then a, b, c and the mask.
                let [result @ .., a, b, c, _] = operands else { return Err("a shuffle lacks operands".to_owned()) };
                let mut values = [0; WARP];
                for &lane in lanes {
                    values[lane] = self.value(&warp[lane], a)?;
                }
                for &lane in lanes {
                    let (by, clamp) = (self.value(&warp[lane], b)? as u32, self.value(&warp[lane], c)? as u32);
                    let (from, inside) = source(what, lane as u32, by, clamp);
                    if !lanes.contains(&(from as usize)) {
                        return Err(format!("a shuffle reads lane {from}, which is not of its mask"));
                    }
                    for (to, value) in result.iter().zip([values[from as usize], inside.into()]) {
                        put(&mut warp[lane], to, value)?;
                    }
                }
                Ok(())
            }
            Operation::Collective(Collective::Mma(what)) => {
                let [Operand::Vector(d), Operand::Vector(a), Operand::Vector(b), Operand::Vector(c)] = operands else {
                    return Err("an mma lacks operands".to_owned());
                };
                if lanes.len() != WARP {
                    return Err("an mma needs a whole warp".to_owned());
                }
                let mut fragments = [Fragments::default(); WARP];
                for (fragments, thread) in fragments.iter_mut().zip(warp.iter()) {
                    for (value, operand) in fragments.a.iter_mut().zip(a).chain(fragments.b.iter_mut().zip(b)) {
                        *value = self.value(thread, operand)? as u32;
                    }
                    for (value, operand) in fragments.c.iter_mut().zip(c) {
                        *value = f32::from_bits(self.value(thread, operand)? as u32);
                    }
                }
                for (thread, values) in warp.iter_mut().zip(mma(what, &fragments)) {
                    for (to, value) in d.iter().zip(values) {
                        put(thread, to, value.to_bits().into())?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A number of up to 8 bytes.
fn integer(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

fn put(thread: &mut Thread, to: &Operand, value: u64) -> Result<(), String> {
    match to {
        Operand::Register(register) => thread.registers[*register] = value,
        Operand::Nowhere => {}
        _ => return Err(format!("{to:?} takes no value")),
    }
    Ok(())
}
