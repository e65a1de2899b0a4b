//! Builds `tokenizer.json` from the words in a GGUF file.
//!
//! A file has the words with their kinds, and scores or merges, but only a name for the rules that
//! divide a text into words. The rules here are those of the published tokenizers with these names.
//!
//! - `bert`: WordPiece. The converter of llama.cpp marks the start of a word instead of its
//!   continuation.
//! - `gpt2`: BPE of bytes.
//! - `t5`: Unigram of SentencePiece.
//! - `llama`: BPE of SentencePiece, which has scores instead of merges: two tokens merge into the
//!   token with the highest score first.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::file::quoted;
use super::super::vocabulary::{MAX_WORDS, Parts, added_token, template};
use super::MAX_TOKENIZER;
use super::config::Family;
use super::reader::{Fault, Gguf, List};

/// Character that represents a space in the words of SentencePiece.
const SPACE: &str = "▁";
/// Prefix of a word of BERT that continues another one.
const CONTINUING: &str = "##";
/// Regular expression that divides a text into words in Qwen 2 and 3.
const QWEN_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Regular expression that divides a text into words in Llama 3 and EuroBERT.
const LLAMA_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Ids of special tokens in the published BERT, which older files do not state.
const BERT_UNKNOWN: u64 = 100;
const BERT_FIRST: u64 = 101;
const BERT_SEPARATOR: u64 = 102;

/// Maximum length in bytes of a word that is divided into pairs. Gemma has one of 93 bytes.
const MOST_WORD_BYTES: usize = 256;
/// Maximum number of pairs for each word, which is that of the engine. Gemma has two.
const MOST_MERGES: usize = 4;
/// Number of pairs beyond [`MOST_MERGES`], for small vocabularies.
const FURTHER_MERGES: usize = 16 << 10;
/// Maximum number of added tokens, which is that of the engine. Gemma has 6,414.
const MAX_ADDED_TOKENS: usize = 16 << 10;

/// Kind of a word, by its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WordKind {
    Normal,
    Unknown,
    /// Special token.
    Control,
    /// Token that is found in a text before it is divided into words.
    UserDefined,
    /// Placeholder for an id without a word.
    Unused,
    /// Byte that has no other word.
    Byte,
}

impl WordKind {
    fn of(number: i64) -> Result<Self, Fault> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            other => return Err(format!("a token has the unknown type {other}")),
        })
    }
}

/// Word of the tokenizer. Its id is its index.
struct Word {
    text: String,
    kind: WordKind,
}

/// Words and settings of the tokenizer in a file.
struct Source<'a, 'f> {
    file: &'a Gguf<'f>,
    words: Vec<Word>,
}

/// Builds the tokenizer of `file`, which contains an encoder of `family`.
///
/// # Errors
/// When a key is missing or invalid, or names a tokenizer that is not supported.
pub(super) fn build(file: &Gguf<'_>, family: Family) -> Result<Vec<u8>, Fault> {
    let mut source = Source::read(file)?;
    let model = file.text(&key("model"))?.ok_or_else(|| missing("model"))?;
    let parts = match model {
        "bert" => source.word_piece(),
        "gpt2" => source.byte_pairs(family),
        "t5" => source.unigram(),
        "llama" => source.scored_pairs(),
        other => Err(format!(
            "tokenizer.ggml.model {} is not one of bert, gpt2, llama, t5",
            quoted(other)
        )),
    }?;
    let tokenizer = parts.into_json();
    if tokenizer.len() as u64 > MAX_TOKENIZER {
        return Err(format!("its tokenizer has more than {MAX_TOKENIZER} bytes"));
    }
    Ok(tokenizer)
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn missing(name: &str) -> Fault {
    format!("the key {} is missing", key(name))
}

/// Returns the list `name`, if the file has it, after a check of its size.
fn list<'f>(file: &Gguf<'f>, name: &str) -> Result<Option<List<'f>>, Fault> {
    match file.list(&key(name)) {
        Some(list) if list.size() as u64 > MAX_TOKENIZER => {
            Err(format!("{} has more than {MAX_TOKENIZER} bytes", key(name)))
        }
        list => Ok(list),
    }
}

impl<'a, 'f> Source<'a, 'f> {
    fn read(file: &'a Gguf<'f>) -> Result<Self, Fault> {
        let tokens = list(file, "tokens")?.ok_or_else(|| missing("tokens"))?;
        if tokens.count > MAX_WORDS {
            return Err(format!("{} has more than {MAX_WORDS} entries", key("tokens")));
        }
        let texts = tokens.texts().ok_or_else(|| format!("{} are not texts", key("tokens")))?;
        let texts = texts.map(str::to_owned);
        let Some(kinds) = list(file, "token_type")? else {
            let word = |text| Word { text, kind: WordKind::Normal };
            return Ok(Self { file, words: texts.map(word).collect() });
        };
        let kinds_differ = || format!("{} is not one number for each token", key("token_type"));
        if kinds.count != tokens.count {
            return Err(kinds_differ());
        }
        let kinds = kinds.integers().ok_or_else(kinds_differ)?;
        let words = texts.zip(kinds).map(|(text, number)| {
            let kind = WordKind::of(number)?;
            Ok(Word { text, kind })
        });
        Ok(Self { file, words: words.collect::<Result<_, Fault>>()? })
    }

    /// Returns the id `name`, or `default` if the file does not have it.
    fn id(&self, name: &str, default: Option<u64>) -> Result<u32, Fault> {
        let id = self.file.unsigned(&key(name))?.or(default).ok_or_else(|| missing(name))?;
        match u32::try_from(id) {
            Ok(short) if (short as usize) < self.words.len() => Ok(short),
            _ => Err(format!("{} is {id}, but there are {} tokens", key(name), self.words.len())),
        }
    }

    fn text(&self, id: u32) -> &str {
        self.words.get(id as usize).map_or("", |word| &word.text)
    }

    /// Returns the scores of all words.
    fn scores(&self) -> Result<Vec<f64>, Fault> {
        let scores = list(self.file, "scores")?.ok_or_else(|| missing("scores"))?;
        let values: Vec<f64> = scores
            .floats()
            .filter(|_| scores.count == self.words.len())
            .ok_or_else(|| format!("{} is not one number for each token", key("scores")))?
            .collect();
        if values.iter().all(|score| score.is_finite()) {
            Ok(values)
        } else {
            Err(format!("{} has a value that is not finite", key("scores")))
        }
    }

    /// Returns the special and the user-defined tokens, in the order of their ids.
    fn added_tokens(&self) -> Result<Vec<Value>, Fault> {
        let words = self.words.iter().zip(0_u32..).filter(|(word, _)| !word.text.is_empty());
        let added = words.filter_map(|(word, id)| match word.kind {
            WordKind::Control | WordKind::Unknown => Some(added_token(&word.text, id, true)),
            // A run of spaces is found by merges, after a space has become another character.
            WordKind::UserDefined if !word.text.trim_matches(['▁', ' ']).is_empty() => {
                Some(added_token(&word.text, id, false))
            }
            _ => None,
        });
        let added: Vec<_> = added.take(MAX_ADDED_TOKENS + 1).collect();
        if added.len() > MAX_ADDED_TOKENS {
            return Err(format!("it has more than {MAX_ADDED_TOKENS} special tokens"));
        }
        Ok(added)
    }

    /// Returns the maximum number of pairs of a BPE model with these words.
    fn most_merges(&self) -> usize {
        self.words.len().saturating_mul(MOST_MERGES).saturating_add(FURTHER_MERGES)
    }

    /// Returns the words with their ids, except placeholders.
    fn vocabulary(&self) -> Result<Map<String, Value>, Fault> {
        let mut vocabulary = Map::new();
        for (word, id) in self.words.iter().zip(0_u32..) {
            if word.kind != WordKind::Unused
                && vocabulary.insert(word.text.clone(), id.into()).is_some()
            {
                return Err(format!("the token {} appears twice", quoted(&word.text)));
            }
        }
        Ok(vocabulary)
    }

    /// Returns the tokens around a text. A default is `None` if models of the family differ.
    fn around(&self, first: bool, last: Option<bool>) -> Result<Value, Fault> {
        let first = self.file.bool(&key("add_bos_token"))?.unwrap_or(first);
        let last = self.file.bool(&key("add_eos_token"))?.or(last).ok_or_else(|| {
            format!(
                "{}, so it is unknown whether a text ends with a special token; convert the model \
                 again with a newer llama.cpp",
                missing("add_eos_token")
            )
        })?;
        let token = |asked: bool, name: &str| {
            let id = asked.then(|| self.id(name, None)).transpose()?;
            Ok::<_, Fault>(id.map(|id| (self.text(id), id)))
        };
        Ok(template(token(first, "bos_token_id")?, token(last, "eos_token_id")?))
    }

    fn word_piece(&mut self) -> Result<Parts, Fault> {
        for word in &mut self.words {
            // Older converters leave every word in brackets as it is.
            let in_brackets = word.text.starts_with('[') && word.text.ends_with(']');
            if word.kind == WordKind::Control {
                continue;
            } else if let Some(start) = word.text.strip_prefix(SPACE) {
                word.text = start.to_owned();
            } else if !in_brackets {
                word.text.insert_str(0, CONTINUING);
            }
        }
        let first = self.file.unsigned(&key("cls_token_id"))?.unwrap_or(BERT_FIRST);
        let first = self.id("bos_token_id", Some(first))?;
        let separator = self.id("seperator_token_id", Some(BERT_SEPARATOR))?;
        let unknown = self.id("unknown_token_id", Some(BERT_UNKNOWN))?;
        let lowercase = self.file.bool(&key("normalizer.lowercase"))?;
        // A tokenizer that lowercases could never find a word with a capital.
        let has_capital = |word: &Word| {
            !word.text.starts_with('[') && word.text.chars().any(|c| c.is_ascii_uppercase())
        };
        let lowercase = lowercase.unwrap_or_else(|| !self.words.iter().any(has_capital));
        Ok(Parts {
            added_tokens: self.added_tokens()?,
            normalizer: json!({
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": self.file.bool(&key("normalizer.strip_accents"))?,
                "lowercase": lowercase,
            }),
            pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
            post_processor: template(
                Some((self.text(first), first)),
                Some((self.text(separator), separator)),
            ),
            decoder: json!({ "type": "WordPiece", "prefix": CONTINUING, "cleanup": true }),
            model: json!({
                "type": "WordPiece", "unk_token": self.text(unknown),
                "continuing_subword_prefix": CONTINUING, "max_input_chars_per_word": 100,
                "vocab": self.vocabulary()?,
            }),
        })
    }

    fn byte_pairs(&self, family: Family) -> Result<Parts, Fault> {
        let name = self.file.text(&key("pre"))?.ok_or_else(|| missing("pre"))?;
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let words = |expression: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
                {
                    "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated",
                    "invert": false,
                },
                byte_level(false),
            ] })
        };
        let composed = json!({ "type": "NFC" });
        let (normalizer, pre_tokenizer, ignore_merges) = match name {
            "gpt-2" | "roberta-bpe" => (Value::Null, byte_level(true), false),
            "modern-bert" => (composed, byte_level(true), false),
            "qwen2" => (composed, words(QWEN_WORDS), false),
            "llama-bpe" | "llama-v3" | "llama3" => (Value::Null, words(LLAMA_WORDS), true),
            other => {
                return Err(format!(
                    "{} {} is not one of gpt-2, llama-bpe, modern-bert, qwen2, roberta-bpe",
                    key("pre"),
                    quoted(other)
                ));
            }
        };
        let merges = list(self.file, "merges")?.ok_or_else(|| missing("merges"))?;
        let most = self.most_merges();
        if merges.count > most {
            return Err(format!("{} has more than {most} entries", key("merges")));
        }
        let merges = merges.texts().ok_or_else(|| missing("merges"))?;
        let merges = merges.map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(format!("the merge {} has no space", quoted(merge))),
        });
        let (first, last) = match family {
            Family::Qwen3 => (false, None),
            Family::EuroBert => (true, None),
            _ => (true, Some(true)),
        };
        Ok(Parts {
            added_tokens: self.added_tokens()?,
            normalizer,
            pre_tokenizer,
            post_processor: self.around(first, last)?,
            decoder: byte_level(true),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": ignore_merges,
                "vocab": self.vocabulary()?,
                "merges": merges.collect::<Result<Vec<_>, Fault>>()?,
            }),
        })
    }

    fn unigram(&self) -> Result<Parts, Fault> {
        if self.file.bool(&key("add_space_prefix"))? == Some(false) {
            return Err(format!("{} is false; only true is supported", key("add_space_prefix")));
        }
        let normalizer = match list(self.file, "precompiled_charsmap")? {
            None => Value::Null,
            Some(charsmap) => {
                let bytes = charsmap
                    .bytes()
                    .ok_or_else(|| format!("{} are not bytes", key("precompiled_charsmap")))?;
                json!({ "type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes) })
            }
        };
        let metaspace = json!({
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": true,
        });
        let scores = self.scores()?;
        let words = self.words.iter().zip(scores);
        let words: Vec<_> = words.map(|(word, score)| json!([word.text, score])).collect();
        Ok(Parts {
            added_tokens: self.added_tokens()?,
            normalizer,
            pre_tokenizer: json!({
                "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, metaspace],
            }),
            post_processor: self.around(true, Some(true))?,
            decoder: metaspace,
            model: json!({
                "type": "Unigram", "unk_id": self.id("unknown_token_id", None)?, "vocab": words,
                "byte_fallback": false,
            }),
        })
    }

    fn scored_pairs(&mut self) -> Result<Parts, Fault> {
        let mut scores = self.scores()?;
        for (word, score) in self.words.iter_mut().zip(&mut scores) {
            if word.kind == WordKind::UserDefined {
                // The converter writes a space here, and a low score.
                word.text = word.text.replace(' ', SPACE);
                *score = 0.0;
            }
        }
        let unknown = self.id("unknown_token_id", None)?;
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let spaces = replace(" ", SPACE);
        let prefix = self.file.bool(&key("add_space_prefix"))?.unwrap_or(true);
        Ok(Parts {
            added_tokens: self.added_tokens()?,
            normalizer: match prefix {
                true => json!({ "type": "Sequence", "normalizers": [
                    { "type": "Prepend", "prepend": SPACE }, spaces,
                ] }),
                false => spaces,
            },
            pre_tokenizer: Value::Null,
            post_processor: self.around(true, None)?,
            decoder: json!({ "type": "Sequence", "decoders": [
                replace(SPACE, " "), { "type": "ByteFallback" }, { "type": "Fuse" },
            ] }),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": self.text(unknown),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocabulary()?,
                "merges": self.merges_by(&scores)?,
            }),
        })
    }

    /// Returns every pair of words whose concatenation is a word, those with the highest scores
    /// first, in the order in which transformers creates them:
    /// <https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/convert_slow_tokenizer.py>
    fn merges_by(&self, scores: &[f64]) -> Result<Vec<[&str; 2]>, Fault> {
        let scored = self.words.iter().zip(scores);
        let scored = scored
            .filter(|(word, _)| matches!(word.kind, WordKind::Normal | WordKind::UserDefined));
        let parts: HashSet<&str> = scored.clone().map(|(word, _)| word.text.as_str()).collect();
        let most = self.most_merges();
        let mut merges = Vec::new();
        for (word, score) in scored {
            if word.text.len() > MOST_WORD_BYTES {
                let text = quoted(&word.text);
                return Err(format!("the token {text} has more than {MOST_WORD_BYTES} bytes"));
            }
            for (index, _) in word.text.char_indices().skip(1) {
                let (left, right) = word.text.split_at(index);
                if !parts.contains(left) || !parts.contains(right) {
                    continue;
                }
                if merges.len() == most {
                    return Err(format!("its tokens form more than {most} pairs"));
                }
                merges.push((*score, [left, right]));
            }
        }
        let lengths = |pair: &[&str; 2]| pair.map(|part| part.chars().count());
        merges.sort_by(|(score, pair), (other_score, other_pair)| {
            let longer = || lengths(other_pair).cmp(&lengths(pair));
            other_score.total_cmp(score).then_with(longer)
        });
        Ok(merges.into_iter().map(|(_, pair)| pair).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::reader::tests::{file, key as entry, listed, named, number, text, truth};
    use super::*;

    /// Word with its type and its score.
    type Listed<'a> = (&'a str, i32, f32);

    /// Returns the keys of the words.
    fn words(words: &[Listed<'_>]) -> [Vec<u8>; 3] {
        let texts: Vec<_> = words.iter().map(|word| text(word.0)).collect();
        let types: Vec<_> = words.iter().map(|word| word.1.to_le_bytes().to_vec()).collect();
        let scores: Vec<_> = words.iter().map(|word| word.2.to_le_bytes().to_vec()).collect();
        [
            listed(&key("tokens"), 8, &texts),
            listed(&key("token_type"), 5, &types),
            listed(&key("scores"), 6, &scores),
        ]
    }

    fn build_of(model: &str, keys: &[Vec<u8>], family: Family) -> Result<Value, Fault> {
        let keys: Vec<_> = [named(&key("model"), model)].into_iter().chain(keys.to_vec()).collect();
        let bytes = file(&keys, &[], 0);
        let built = build(&Gguf::parse(&bytes).unwrap(), family)?;
        Ok(serde_json::from_slice(&built).unwrap())
    }

    fn word_piece_keys() -> Vec<Vec<u8>> {
        let list = [
            ("[PAD]", 3, 0.0),
            ("[UNK]", 3, 0.0),
            ("[CLS]", 3, 0.0),
            ("[SEP]", 3, 0.0),
            ("[unused0]", 1, 0.0),
            ("▁[unused1]", 1, 0.0),
            ("▁pump", 1, 0.0),
            ("s", 1, 0.0),
            ("[PAD8]", 5, 0.0),
        ];
        let mut keys = words(&list).to_vec();
        keys.extend([
            number(&key("bos_token_id"), 2),
            number(&key("seperator_token_id"), 3),
            number(&key("unknown_token_id"), 1),
        ]);
        keys
    }

    #[test]
    fn words_of_bert_get_their_prefix_back() {
        let keys = word_piece_keys();
        let built = build_of("bert", &keys, Family::Bert).unwrap();
        let expected = json!({
            "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[unused0]": 4, "[unused1]": 5,
            "pump": 6, "##s": 7,
        });
        assert_eq!(built["model"]["vocab"], expected);
        assert_eq!(built["model"]["unk_token"], "[UNK]");
        assert_eq!(built["normalizer"]["lowercase"], true);
        assert_eq!(built["added_tokens"].as_array().unwrap().len(), 4);
        let single = &built["post_processor"]["single"];
        assert_eq!(single[0]["SpecialToken"]["id"], "[CLS]");
        assert_eq!(single[2]["SpecialToken"]["id"], "[SEP]");
        let cased = [&keys[..], &[truth(&key("normalizer.lowercase"), false)]].concat();
        let built = build_of("bert", &cased, Family::Bert).unwrap();
        assert_eq!(built["normalizer"]["lowercase"], false);
    }

    #[test]
    fn words_with_capitals_are_not_lowercased() {
        let list = [("[CLS]", 3, 0.0), ("▁Pump", 1, 0.0)];
        let mut keys = words(&list).to_vec();
        let ids = ["bos_token_id", "seperator_token_id", "unknown_token_id"];
        keys.extend(ids.map(|name| number(&key(name), 0)));
        let built = build_of("bert", &keys, Family::Bert).unwrap();
        assert_eq!(built["normalizer"]["lowercase"], false);
    }

    #[test]
    fn scores_become_merges() {
        let list = [
            ("<unk>", 2, 0.0),
            ("<s>", 3, 0.0),
            ("</s>", 3, 0.0),
            ("a", 1, -3.0),
            ("b", 1, -4.0),
            ("ab", 1, -2.0),
            ("aab", 1, -1.0),
            ("  ", 4, -1000.0),
            ("▁", 1, -5.0),
            ("<tag>", 4, -1000.0),
            ("<0x0A>", 6, 0.0),
        ];
        let mut keys = words(&list).to_vec();
        keys.extend([
            number(&key("bos_token_id"), 1),
            number(&key("eos_token_id"), 2),
            number(&key("unknown_token_id"), 0),
            truth(&key("add_space_prefix"), false),
        ]);
        let message = build_of("llama", &keys, Family::Gemma3).unwrap_err();
        assert!(message.contains("tokenizer.ggml.add_eos_token is missing"), "{message}");
        keys.push(truth(&key("add_eos_token"), true));
        let built = build_of("llama", &keys, Family::Gemma3).unwrap();
        let expected = json!([["▁", "▁"], ["a", "ab"], ["a", "b"]]);
        assert_eq!(built["model"]["merges"], expected);
        assert_eq!(built["model"]["vocab"]["▁▁"], 7);
        let added = built["added_tokens"].as_array().unwrap();
        let added: Vec<_> = added.iter().map(|token| token["content"].as_str().unwrap()).collect();
        assert_eq!(added, ["<unk>", "<s>", "</s>", "<tag>"]);
        assert_eq!(built["post_processor"]["special_tokens"]["</s>"]["ids"][0], 2);
    }

    #[test]
    fn numbers_of_words_and_pairs_are_limited() {
        let refusal =
            |model: &str, keys: &[Vec<u8>]| build_of(model, keys, Family::Bert).unwrap_err();
        // An empty text has a length of 8 bytes.
        let count = MAX_WORDS + 1;
        let texts = vec![0; 8 * count];
        let list = [&8_u32.to_le_bytes()[..], &(count as u64).to_le_bytes(), &texts].concat();
        let message = refusal("bert", &[entry(&key("tokens"), 9, &list)]);
        assert!(message.contains("tokens has more than 1048576 entries"), "{message}");
        let special = vec![("[X]", 3, 0.0); MAX_ADDED_TOKENS + 1];
        let message = refusal("bert", &words(&special));
        assert!(message.contains("more than 16384 special tokens"), "{message}");
        let mut pairs = words(&[("a", 1, 0.0)]).to_vec();
        pairs.push(named(&key("pre"), "gpt-2"));
        let most = MOST_MERGES + FURTHER_MERGES;
        pairs.push(listed(&key("merges"), 8, &vec![text("a b"); most + 1]));
        let message = refusal("gpt2", &pairs);
        assert!(message.contains("merges has more than 16388 entries"), "{message}");
    }

    #[test]
    fn unknown_tokenizers_are_refused_by_name() {
        let plain = words(&[("a", 1, 0.0), ("b", 1, 0.0)]).to_vec();
        let with = |more: &[Vec<u8>]| [&plain[..], more].concat();
        let merges = |merge: &str| listed(&key("merges"), 8, &[text(merge)]);
        let pre = |name: &str| named(&key("pre"), name);
        let twice = words(&[("a", 1, 0.0), ("a", 1, 0.0)]).to_vec();
        let gpt2 = [pre("gpt-2"), merges("a b"), truth(&key("add_bos_token"), false)];
        let twice = [&twice[..], &gpt2, &[truth(&key("add_eos_token"), false)]].concat();
        for (model, keys, part) in [
            ("rwkv", plain.clone(), "\"rwkv\" is not one of bert, gpt2, llama, t5"),
            ("gpt2", plain.clone(), "tokenizer.ggml.pre is missing"),
            ("gpt2", with(&[pre("tekken")]), "\"tekken\" is not one of gpt-2"),
            ("gpt2", with(&[pre("qwen2")]), "tokenizer.ggml.merges is missing"),
            ("gpt2", with(&[pre("gpt-2"), merges("ab")]), "tokenizer.ggml.bos_token_id is missing"),
            ("gpt2", with(&gpt2), "tokenizer.ggml.eos_token_id is missing"),
            ("gpt2", twice, "the token \"a\" appears twice"),
            ("t5", with(&[truth(&key("add_space_prefix"), false)]), "add_space_prefix is false"),
            ("bert", plain.clone(), "bos_token_id is 101, but there are 2 tokens"),
            ("bert", Vec::new(), "tokenizer.ggml.tokens is missing"),
            ("bert", words(&[("a", 9, 0.0)]).to_vec(), "the unknown type 9"),
            ("llama", words(&[("a", 1, f32::NAN)]).to_vec(), "not finite"),
            ("llama", vec![plain[0].clone(), plain[1].clone()], "scores is missing"),
        ] {
            let message = build_of(model, &keys, Family::Bert).unwrap_err();
            assert!(message.contains(part), "{part}: {message}");
        }
        let qwen = with(&[pre("qwen2"), merges("a b")]);
        let message = build_of("gpt2", &qwen, Family::Qwen3).unwrap_err();
        assert!(message.contains("add_eos_token is missing"), "{message}");
    }
}
