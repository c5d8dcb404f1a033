//! The moves of a run so far. A copy shares them with the original: an exhaustive search
//! copies a run at every turn.

use std::rc::Rc;

use super::moves::Move;

/// A list that grows at its end and is never copied.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Option<Rc<Link>>);

#[derive(Debug)]
struct Link {
    last: Move,
    before: History,
}

impl History {
    pub(super) fn push(&mut self, last: Move) {
        let before = History(self.0.take());
        self.0 = Some(Rc::new(Link { last, before }));
    }

    /// All of them, first to last.
    pub(super) fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut at = &self.0;
        while let Some(link) = at {
            moves.push(link.last.clone());
            at = &link.before.0;
        }
        moves.reverse();
        moves
    }
}

impl Drop for History {
    /// One by one: thousands of links that drop each other would overflow the stack.
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut link) = next.and_then(Rc::into_inner) {
            next = link.before.0.take();
        }
    }
}
