//! What a daemon knows of its templates: which are made, which have failed, which memories
//! are being filled ahead, and which VMs have not proved theirs yet.
//!
//! Locks are held for the look at a map alone; what comes out of one is let go after it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::model::ids::VmId;
use crate::plan::boot_args::HostClock;
use crate::plan::retry::STEPS_AT_ONCE;

use super::file::{Memory, Shelf, Template};

/// So many failures of a shape, with no success between them, and a daemon leaves it.
pub const TRIES: u32 = 3;
/// How far the counter's frequency may be from what a template's guest was told, in parts of
/// it: two measurements agree within a hundredth of that, as a rule.
const CLOCK_TOLERANCE: u64 = 2000;

/// See the head of this file.
#[derive(Debug)]
pub struct Templates {
    /// Where they lie.
    pub shelf: Shelf,
    /// Keys of those that are being made.
    making: Mutex<HashSet<String>>,
    /// How often in a row something came to nothing with which key.
    failures: Mutex<HashMap<String, u32>>,
    /// Those whose content has been compared with its sum.
    checked: Mutex<HashSet<PathBuf>>,
    /// VMs that are about to be started, with their memory once it has been begun.
    ahead: Mutex<HashMap<VmId, Option<Filling>>>,
    /// VMs that began from a template and are not ready yet.
    trials: Mutex<HashMap<VmId, (String, Arc<Template>)>>,
    /// Keys whose template has led to a guest that was ready.
    proved: Mutex<HashSet<String>>,
}

/// A memory that a thread is filling.
#[derive(Debug)]
pub struct Filling {
    /// The memory.
    pub memory: Arc<Memory>,
    /// What it is filled from: the rest of the machine must come from the same one.
    pub template: Arc<Template>,
    sum: Sum,
    thread: JoinHandle<io::Result<Duration>>,
}

/// Whether a template's content is compared with its sum on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// It is.
    Compared,
    /// It has been.
    Known,
}

/// The right to make a template, which nobody else has meanwhile.
#[derive(Debug)]
pub struct Making<'a> {
    templates: &'a Templates,
    key: String,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        locked(&self.templates.making).remove(&self.key);
    }
}

/// A lock that a panic elsewhere leaves usable: what it guards is whole at all times.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Templates {
    /// Those in this folder.
    pub fn at(folder: PathBuf) -> Templates {
        Templates {
            shelf: Shelf::at(folder),
            making: Mutex::default(),
            failures: Mutex::default(),
            checked: Mutex::default(),
            ahead: Mutex::default(),
            trials: Mutex::default(),
            proved: Mutex::default(),
        }
    }

    /// The template of this key for a guest with so many bytes of memory.
    pub fn find(&self, key: &str, memory: u64, clock: HostClock) -> Option<Arc<Template>> {
        let found = self.shelf.find(key, memory)?;
        let told = found.tsc_khz();
        match told.abs_diff(clock.tsc_khz) <= clock.tsc_khz / CLOCK_TOLERANCE {
            true => Some(Arc::new(found)),
            // Another machine's, by way of a shared home directory.
            false => {
                found.discard();
                None
            }
        }
    }

    /// Whether this shape is left alone.
    pub fn is_left(&self, key: &str) -> bool {
        let failures = locked(&self.failures);
        failures.get(key).is_some_and(|count| *count >= TRIES)
    }

    /// Something came to nothing with this shape.
    pub fn count_failure(&self, key: &str, counts: u32) {
        *locked(&self.failures).entry(key.to_owned()).or_default() += counts;
    }

    /// The right to make the template of a key; `None` while another has it.
    pub fn make(&self, key: &str) -> Option<Making<'_>> {
        let free = locked(&self.making).insert(key.to_owned());
        free.then(|| Making {
            templates: self,
            key: key.to_owned(),
        })
    }

    /// A template of this key has been written: what was known of another one is void.
    pub fn written(&self, key: &str) {
        locked(&self.checked).remove(&self.shelf.name(key));
        locked(&self.proved).remove(key);
    }

    /// Begins to fill a memory of so many bytes.
    ///
    /// # Errors
    /// No memory, descriptor or thread is left.
    pub fn fill(&self, template: &Arc<Template>, size: u64) -> io::Result<Filling> {
        let memory = Arc::new(Memory::new(size)?);
        let sum = match locked(&self.checked).contains(template.path()) {
            true => Sum::Known,
            false => Sum::Compared,
        };
        let (from, to) = (template.clone(), memory.clone());
        let thread = thread::Builder::new().spawn(move || {
            let began = Instant::now();
            from.fill(&to, sum).map(|()| began.elapsed())
        })?;
        Ok(Filling {
            memory,
            template: template.clone(),
            sum,
            thread,
        })
    }

    /// Waits until a memory is full; how long it took.
    ///
    /// # Errors
    /// As [`Template::fill`].
    pub fn finish(&self, filling: Filling) -> io::Result<Duration> {
        let took = filling.thread.join().expect("a panic ends the process")?;
        if filling.sum == Sum::Compared {
            locked(&self.checked).insert(filling.template.path().to_owned());
        }
        Ok(took)
    }

    /// A VM is about to be started.
    pub fn expect(&self, vm: VmId) {
        let before = locked(&self.ahead).insert(vm, None);
        drop(before);
    }

    /// Whether another memory may be begun ahead: no more than starts are under way at once.
    pub fn has_room_ahead(&self) -> bool {
        let ahead = locked(&self.ahead);
        ahead.values().flatten().count() < STEPS_AT_ONCE
    }

    /// A memory was begun for a VM; let go if nobody expects its start any more.
    pub fn put_ahead(&self, vm: VmId, filling: Filling) {
        let mut ahead = locked(&self.ahead);
        let unused = match ahead.get_mut(&vm) {
            Some(expected) => expected.replace(filling),
            None => Some(filling),
        };
        drop(ahead);
        drop(unused);
    }

    /// The memory that was begun ahead for a VM, whose start is expected no more.
    pub fn take_ahead(&self, vm: VmId) -> Option<Filling> {
        let taken = locked(&self.ahead).remove(&vm);
        taken.flatten()
    }

    /// A VM begins from a template: whether that is of use will show.
    pub fn try_out(&self, vm: VmId, key: &str, template: &Arc<Template>) {
        let trial = (key.to_owned(), template.clone());
        let before = locked(&self.trials).insert(vm, trial);
        drop(before);
    }

    /// The VM's guest is ready.
    pub fn prove(&self, vm: VmId) {
        let trial = locked(&self.trials).remove(&vm);
        if let Some((key, _)) = trial {
            locked(&self.failures).remove(&key);
            locked(&self.proved).insert(key);
        }
    }

    /// The VM's VMM is to end. If its guest was never ready, nor any other from its template,
    /// that one is not trusted again. After one that was, it is this VM's own affair.
    pub fn ended(&self, vm: VmId) {
        let trial = locked(&self.trials).remove(&vm);
        if let Some((key, template)) = trial
            && !locked(&self.proved).contains(&key)
        {
            log::warn!("vm {vm} ends before its guest was ready; its template is removed");
            self.count_failure(&key, 1);
            template.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::{SIZE, content, put};
    use super::*;

    const KHZ: u64 = 2_500_000;

    fn stock() -> (tempfile::TempDir, Templates) {
        let folder = tempfile::tempdir().unwrap();
        let stock = Templates::at(folder.path().to_owned());
        (folder, stock)
    }

    fn find(stock: &Templates, key: &str) -> Option<Arc<Template>> {
        stock.find(key, SIZE, HostClock::of_tsc_khz(KHZ))
    }

    /// Symptom: the template of a key was replaced between the filling and the start; state
    /// and memory were of two machines.
    #[test]
    fn a_memory_that_was_begun_ahead_stays_with_its_template() {
        let (_folder, stock) = stock();
        let vm = VmId::from_bits(1);
        put(&stock.shelf, "a", b"one machine");
        let first = find(&stock, "a").unwrap();
        stock.expect(vm);
        stock.put_ahead(vm, stock.fill(&first, SIZE).unwrap());
        first.discard();
        put(&stock.shelf, "a", b"another one");
        let taken = stock.take_ahead(vm).unwrap();
        assert!(Arc::ptr_eq(&taken.template, &first));
        let memory = taken.memory.clone();
        stock.finish(taken).unwrap();
        assert_eq!(content(&memory)[..5], *b"first");
        assert!(stock.take_ahead(vm).is_none());
    }

    #[test]
    fn a_memory_that_comes_too_late_is_let_go() {
        let (_folder, stock) = stock();
        let vm = VmId::from_bits(1);
        put(&stock.shelf, "a", b"one machine");
        let template = find(&stock, "a").unwrap();
        stock.expect(vm);
        assert!(stock.take_ahead(vm).is_none());
        stock.put_ahead(vm, stock.fill(&template, SIZE).unwrap());
        assert!(stock.take_ahead(vm).is_none());
        assert!(locked(&stock.ahead).is_empty());
    }

    /// Makes a template and has a VM begin from it.
    fn begin(stock: &Templates, vm: VmId) {
        put(&stock.shelf, "a", b"one machine");
        stock.written("a");
        let template = find(stock, "a").unwrap();
        stock.try_out(vm, "a", &template);
    }

    #[test]
    fn a_template_without_a_guest_that_was_ready_is_removed_and_its_shape_left_at_last() {
        let (_folder, stock) = stock();
        let vm = VmId::from_bits(1);
        for tries in 0..TRIES {
            assert!(!stock.is_left("a"), "after {tries}");
            begin(&stock, vm);
            stock.ended(vm);
            assert!(find(&stock, "a").is_none());
        }
        assert!(stock.is_left("a"));
        assert!(!stock.is_left("b"));
    }

    /// Symptom: Ctrl-C while a guest booted took the template away from all others.
    #[test]
    fn a_template_that_has_led_to_a_ready_guest_is_kept_whatever_becomes_of_others() {
        let (_folder, stock) = stock();
        let [one, other] = [1, 2].map(VmId::from_bits);
        stock.count_failure("a", TRIES - 1);
        begin(&stock, one);
        stock.prove(one);
        for _ in 0..TRIES {
            let template = find(&stock, "a").unwrap();
            stock.try_out(other, "a", &template);
            stock.ended(other);
        }
        assert!(find(&stock, "a").is_some() && !stock.is_left("a"));
        // A new one has to prove itself.
        find(&stock, "a").unwrap().discard();
        begin(&stock, other);
        stock.ended(other);
        assert!(find(&stock, "a").is_none());
    }

    #[test]
    fn a_template_is_made_by_one_at_a_time() {
        let (_folder, stock) = stock();
        let one = stock.make("a");
        assert!(one.is_some() && stock.make("a").is_none() && stock.make("b").is_some());
        drop(one);
        assert!(stock.make("a").is_some());
    }

    #[test]
    fn a_template_of_another_clock_is_removed() {
        let (_folder, stock) = stock();
        put(&stock.shelf, "a", b"one machine");
        let near = HostClock::of_tsc_khz(KHZ + KHZ / CLOCK_TOLERANCE);
        assert!(stock.find("a", SIZE, near).is_some());
        let far = HostClock::of_tsc_khz(KHZ + KHZ / 1000);
        assert!(stock.find("a", SIZE, far).is_none());
        assert!(find(&stock, "a").is_none());
    }
}
