//! One file a kernel.

mod codes;
pub(crate) mod project;
mod reduce;
#[cfg(test)]
mod testing;
