//! The queue of waiting requests: clients take turns, and the requests of a client keep their order.

use std::collections::VecDeque;
use std::mem::take;

/// A queue that is fair between clients.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    /// Items that were taken from the queue before and put back; they go first.
    resumed: VecDeque<T>,
    /// Clients with their items, in the order of their turns. Every client here has an item.
    clients: VecDeque<(String, VecDeque<T>)>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Waiting<T> {
        Waiting { resumed: VecDeque::new(), clients: VecDeque::new() }
    }
}

impl<T> Waiting<T> {
    pub fn push(&mut self, client: &str, item: T) {
        match self.clients.iter_mut().find(|(name, _)| name == client) {
            Some((_, queue)) => queue.push_back(item),
            None => self.clients.push_back((client.to_owned(), VecDeque::from([item]))),
        }
    }

    /// Puts an item before all others.
    pub fn resume(&mut self, item: T) {
        self.resumed.push_front(item);
    }

    pub fn peek(&self) -> Option<&T> {
        self.resumed.front().or_else(|| self.clients.front()?.1.front())
    }

    /// Removes the item that [`Waiting::peek`] returns. Its client's next turn comes after those of all others, unless the item
    /// was put back: then the order of the turns stays the same.
    pub fn pop(&mut self) -> Option<T> {
        if let Some(item) = self.resumed.pop_front() {
            return Some(item);
        }
        let (client, mut queue) = self.clients.pop_front()?;
        let item = queue.pop_front();
        if !queue.is_empty() {
            self.clients.push_back((client, queue));
        }
        item
    }

    /// Removes all items that `chosen` selects.
    pub fn extract(&mut self, chosen: impl Fn(&T) -> bool) -> Vec<T> {
        let mut extracted = Vec::new();
        let queues = self.clients.iter_mut().map(|(_, queue)| queue);
        for queue in std::iter::once(&mut self.resumed).chain(queues) {
            if queue.iter().any(&chosen) {
                let (out, kept): (VecDeque<T>, VecDeque<T>) = take(queue).into_iter().partition(&chosen);
                *queue = kept;
                extracted.extend(out);
            }
        }
        self.clients.retain(|(_, queue)| !queue.is_empty());
        extracted
    }

    pub fn len(&self) -> usize {
        self.resumed.len() + self.clients.iter().map(|(_, queue)| queue.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.resumed.is_empty() && self.clients.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(&str, u32)]) -> Waiting<u32> {
        let mut waiting = Waiting::default();
        items.iter().for_each(|&(client, item)| waiting.push(client, item));
        waiting
    }

    fn drained(mut waiting: Waiting<u32>) -> Vec<u32> {
        std::iter::from_fn(|| waiting.pop()).collect()
    }

    #[test]
    fn clients_are_served_in_turn() {
        let waiting = queue(&[("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]);
        assert_eq!(waiting.len(), 6);
        assert_eq!(drained(waiting), [1, 4, 5, 2, 6, 3]);
    }

    #[test]
    fn late_client_waits_for_one_request_of_each_other_client() {
        let mut waiting = queue(&[("a", 1), ("a", 2), ("a", 3), ("b", 4)]);
        assert_eq!(waiting.pop(), Some(1));
        waiting.push("c", 5);
        assert_eq!(drained(waiting), [4, 2, 5, 3]);
    }

    #[test]
    fn resumed_requests_go_first() {
        let mut waiting = queue(&[("a", 1), ("b", 2)]);
        waiting.resume(7);
        waiting.resume(6);
        assert_eq!(waiting.peek(), Some(&6));
        assert_eq!(drained(waiting), [6, 7, 1, 2]);
    }

    #[test]
    fn extracted_items_leave_no_empty_client() {
        let mut waiting = queue(&[("a", 1), ("b", 2), ("b", 3)]);
        waiting.resume(4);
        assert_eq!(waiting.extract(|&item| item != 3), [4, 1, 2]);
        assert_eq!(waiting.peek(), Some(&3));
        assert_eq!(waiting.extract(|_| true), [3]);
        assert!(waiting.is_empty());
    }
}
