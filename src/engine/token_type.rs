//! Token types: the number by which an encoder separates the tokens of the first text of a pair from
//! those of the second.
//!
//! A type is 0 or 1, and the highest bit of a token id holds it. So a pair is a list of ids like a
//! text, and passes through the same queue, batches and limits. Ids without the bit have type 0,
//! which every token of a single text has.
//!
//! Invariant: only [`Tokenizer::join`](super::Tokenizer::join) sets the bit, and only for a model
//! that has an embedding for type 1. An id of a client with the bit is outside every vocabulary.

/// Bit of a token id that holds its type.
const TYPE: u32 = 1 << 31;

/// Returns the token `id` with the given type, 0 or 1.
pub(super) const fn with_type(id: u32, token_type: u32) -> u32 {
    if token_type == 0 { id } else { id | TYPE }
}

/// Returns the id of `token`, and whether its type is 1.
pub(super) const fn id_and_type(token: u32) -> (u32, bool) {
    (token & !TYPE, token & TYPE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_does_not_change_the_id() {
        for id in [0, 1, 1 << 22] {
            assert_eq!(id_and_type(with_type(id, 0)), (id, false));
            assert_eq!(id_and_type(with_type(id, 1)), (id, true));
            assert_eq!(with_type(id, 0), id);
        }
    }
}
