//! A macro for engines that wrap another engine.

/// Used inside `impl Engine for …`: implements each named method as a call of the same method of the engine in a field. The wrapper
/// writes only the methods that it changes, for example its own `submit` beside
/// `delegate_engine!(inner: config, capacity, length, collect, fork, truncate, release);`.
///
/// The caller's crate must depend on `phase1-loading`, whose configuration [`Engine::config`](crate::Engine::config) returns. Methods
/// with a default implementation cannot be delegated: by default `step` and the like call the wrapper's own methods, and the wrapper has
/// no snapshots.
#[macro_export]
macro_rules! delegate_engine {
    (@ $field:tt config) => {
        fn config(&self) -> &::phase1_loading::GptOssConfig {
            self.$field.config()
        }
    };
    (@ $field:tt capacity) => {
        fn capacity(&self) -> $crate::Capacity {
            self.$field.capacity()
        }
    };
    (@ $field:tt length) => {
        fn length(&self, sequence: $crate::SequenceId) -> usize {
            self.$field.length(sequence)
        }
    };
    (@ $field:tt submit) => {
        fn submit(&mut self, work: &[$crate::Work<'_>]) -> Result<$crate::Ticket, $crate::EngineError> {
            self.$field.submit(work)
        }
    };
    (@ $field:tt collect) => {
        fn collect(&mut self, ticket: $crate::Ticket) -> Result<Vec<$crate::Outcome>, $crate::EngineError> {
            self.$field.collect(ticket)
        }
    };
    (@ $field:tt fork) => {
        fn fork(
            &mut self,
            from: $crate::SequenceId,
            to: $crate::SequenceId,
            length: usize,
        ) -> Result<(), $crate::EngineError> {
            self.$field.fork(from, to, length)
        }
    };
    (@ $field:tt truncate) => {
        fn truncate(&mut self, sequence: $crate::SequenceId, length: usize) -> Result<(), $crate::EngineError> {
            self.$field.truncate(sequence, length)
        }
    };
    (@ $field:tt release) => {
        fn release(&mut self, sequence: $crate::SequenceId) {
            self.$field.release(sequence);
        }
    };
    ($field:tt: $($method:ident),+) => {
        $($crate::delegate_engine!(@ $field $method);)+
    };
}
