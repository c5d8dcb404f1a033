//! What a template keeps and gives back, and what is believed of a file.

use std::io::Write;
use std::time::Duration;

use super::*;

pub const SIZE: u64 = 3 << 20;
const LENGTH: u64 = PAGE as u64;

fn memory() -> Memory {
    let memory = Memory::new(SIZE).unwrap();
    let write = |bytes: &[u8], place| memory.0.write_all_at(bytes, place).unwrap();
    write(b"first", 0);
    write(&[0; PAGE], LENGTH);
    write(&[7; PAGE], SIZE - LENGTH);
    for copy in 0..40 {
        write(&[7; PAGE], (1 << 20) + copy * LENGTH);
    }
    // Others before and behind them.
    write(&[8; PAGE], (1 << 20) - LENGTH);
    write(&[9; PAGE], (1 << 20) + 40 * LENGTH);
    memory
}

/// Puts a template of that memory on a shelf.
pub fn put(shelf: &Shelf, key: &str, state: &[u8]) {
    let writing = shelf.begin(key).unwrap();
    writing.file().write_all(state).unwrap();
    writing.finish(&memory(), 2_500_000).unwrap();
}

/// All of a memory.
pub fn content(memory: &Memory) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    memory.0.read_exact_at(&mut content, 0).unwrap();
    content
}

fn shelf() -> (tempfile::TempDir, Shelf) {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::at(folder.path().join("machines"));
    (folder, shelf)
}

#[test]
fn what_is_put_there_is_found_and_fills_a_memory_alike() {
    let (_folder, shelf) = shelf();
    assert!(shelf.find("a", SIZE).is_none());
    put(&shelf, "a", b"the machine");
    let template = shelf.find("a", SIZE).unwrap();
    assert_eq!(template.tsc_khz(), 2_500_000);
    let run = |start, pages, repeats| Run {
        start,
        length: pages * LENGTH,
        repeats,
    };
    let runs = [
        run(0, 1, false),
        run((1 << 20) - LENGTH, 1, false),
        run(1 << 20, 40, true),
        run((1 << 20) + 40 * LENGTH, 1, false),
        run(SIZE - LENGTH, 1, false),
    ];
    assert_eq!(template.index.runs, runs);
    let filled = Memory::new(SIZE).unwrap();
    // Twice, as two machines would.
    for sum in [Sum::Compared, Sum::Known] {
        template.fill(&filled, sum).unwrap();
    }
    assert_eq!(content(&filled), content(&memory()));
    let mut state = [0; 11];
    let opened = File::open(template.state()).unwrap();
    opened.read_exact_at(&mut state, 0).unwrap();
    assert_eq!(&state, b"the machine");
    template.discard();
    assert!(shelf.find("a", SIZE).is_none());
}

#[test]
fn a_part_of_one_is_none_and_is_removed() {
    let (_folder, shelf) = shelf();
    put(&shelf, "a", b"the machine");
    let whole = fs::read(shelf.name("a")).unwrap();
    for length in (0..whole.len()).step_by(777).chain([whole.len() - 1]) {
        fs::write(shelf.name("a"), &whole[..length]).unwrap();
        assert!(shelf.find("a", SIZE).is_none(), "{length} bytes");
        assert!(!shelf.name("a").exists());
    }
    fs::write(shelf.name("a"), &whole).unwrap();
    assert!(shelf.find("a", SIZE + 1).is_none());
}

/// In QEMU's part, in memory, in the index: a place there that is another one and fits.
#[test]
fn a_byte_that_has_changed_is_noticed() {
    let (_folder, shelf) = shelf();
    put(&shelf, "a", b"the machine");
    let whole = fs::read(shelf.name("a")).unwrap();
    let place = b"\"start\":1048576";
    let digit = whole.windows(place.len()).rposition(|bytes| bytes == place);
    let digit = digit.unwrap() + place.len() - 7;
    for (at, other) in [(3, b'x'), (20, b'x'), (5000, b'x'), (digit, b'2')] {
        let mut changed = whole.clone();
        assert_ne!(changed[at], other);
        changed[at] = other;
        fs::write(shelf.name("a"), changed).unwrap();
        let template = shelf.find("a", SIZE).unwrap();
        let error = template
            .fill(&Memory::new(SIZE).unwrap(), Sum::Compared)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn parts_beyond_the_memory_are_refused() {
    let (_folder, shelf) = shelf();
    put(&shelf, "a", b"the machine");
    let file = File::open(shelf.name("a")).unwrap();
    let (index, text, _) = index_of(&file).unwrap();
    let mut changed = fs::read(shelf.name("a")).unwrap();
    changed.truncate(changed.len() - END as usize - text.len());
    let index = Index {
        memory: LENGTH,
        ..index
    };
    changed.extend(end_of_file(&index, Crc::new()).unwrap());
    fs::write(shelf.name("a"), changed).unwrap();
    let error = index_of(&File::open(shelf.name("a")).unwrap()).unwrap_err();
    assert!(error.to_string().contains("its parts"), "{error}");
}

#[test]
fn a_newer_one_of_that_name_is_not_discarded() {
    let (_folder, shelf) = shelf();
    put(&shelf, "a", b"the machine");
    let old = shelf.find("a", SIZE).unwrap();
    old.discard();
    put(&shelf, "a", b"the machine");
    old.discard();
    assert!(shelf.find("a", SIZE).is_some());
}

#[test]
fn those_not_used_for_longest_go_first_and_the_newest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::at(folder.path().to_owned());
    for (age, key) in ["c", "a", "b"].into_iter().enumerate() {
        fs::write(shelf.name(key), [1; 2 * PAGE]).unwrap();
        let file = File::options().write(true).open(shelf.name(key)).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age as u64 * 60);
        file.set_modified(time).unwrap();
    }
    let others = ["notes", "d.machine.1-0.aside"];
    for other in others {
        fs::write(folder.path().join(other), "x").unwrap();
    }
    shelf.keep(4 * LENGTH, 3).unwrap();
    let left = |key: &str| shelf.name(key).exists();
    assert_eq!(["c", "a", "b"].map(left), [true, true, false]);
    assert_eq!(
        others.map(|other| folder.path().join(other).exists()),
        [true, false]
    );
    shelf.keep(4 * LENGTH, 1).unwrap();
    assert!(left("c") && !left("a"));
}
