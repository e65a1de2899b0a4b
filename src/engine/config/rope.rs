//! Rotations of heads and kinds of layers, as the files of several families describe them.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{MAX_SIZE, RopeConfig, check_at_most, check_layer_count, mismatch, positive};
use crate::engine::EngineError;
use crate::engine::quote::quote;

/// Value of `layer_types` for a layer whose tokens see the whole text.
const FULL: &str = "full_attention";
/// Value of `layer_types` for a layer with a window.
const LOCAL: &str = "sliding_attention";

/// `rope_parameters` of transformers 5, or `rope_scaling` of the versions before.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RopeFile {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// Name of `rope_type` in old files.
    #[serde(rename = "type")]
    old_type: Option<String>,
    factor: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// Setting of the NTK scaling in the code of GTE.
    mixed_b: Option<IgnoredAny>,
    /// Parameters of the layers without a window, in families that have both kinds.
    full_attention: Option<Box<Self>>,
    /// Parameters of the layers with a window.
    sliding_attention: Option<Box<Self>>,
}

/// Base of the rotations outside [`RopeFile`].
#[derive(Clone, Copy)]
pub(super) struct OldTheta {
    /// Name of the field in older files.
    pub(super) field: &'static str,
    /// Value of that field.
    pub(super) value: Option<f64>,
    /// Base if the file has none.
    pub(super) default: f64,
}

impl RopeFile {
    /// Returns the rotation in a family whose layers all have the same. The parts of older files
    /// are `scaling` and `theta`.
    pub(super) fn of_all_layers(
        parameters: Option<&Self>,
        scaling: Option<&Self>,
        theta: OldTheta,
    ) -> Result<RopeConfig, EngineError> {
        let parameters = parameters.cloned().unwrap_or_default();
        if parameters.full_attention.is_some() || parameters.sliding_attention.is_some() {
            return Err(mismatch(format!(
                "rope_parameters has {FULL} or {LOCAL}, which this architecture does not have"
            )));
        }
        parameters.rotation(scaling, theta)
    }

    /// Returns the rotation of the layers of `kind` in a family whose kinds differ. The parts of
    /// older files are `scaling` and `theta`.
    pub(super) fn of_kind(
        parameters: Option<&Self>,
        kind: LayerKind,
        scaling: Option<&Self>,
        theta: OldTheta,
    ) -> Result<RopeConfig, EngineError> {
        let parameters = parameters.and_then(|parameters| match kind {
            LayerKind::Full => parameters.full_attention.as_deref(),
            LayerKind::Local => parameters.sliding_attention.as_deref(),
        });
        let parameters = parameters.cloned().unwrap_or_default();
        parameters.rotation(scaling, theta)
    }

    /// Returns the rotation of these parameters, of which those in `scaling` come first, and with
    /// `theta` where they have none.
    fn rotation(&self, scaling: Option<&Self>, theta: OldTheta) -> Result<RopeConfig, EngineError> {
        let theta = match self.rope_theta {
            Some(theta) => positive("rope_theta", theta),
            None => positive(theta.field, theta.value.unwrap_or(theta.default)),
        }?;
        let source = scaling.unwrap_or(self);
        if let Some(factor) = source.partial_rotary_factor.filter(|&factor| factor != 1.0) {
            return Err(mismatch(format!("partial_rotary_factor {factor} is not supported")));
        }
        let divisor = match source.kind() {
            "default" => 1.0,
            "linear" => source.factor("factor of rope_type \"linear\"")?,
            kind => return Err(mismatch(format!("rope_type {} is not supported", quote(kind)))),
        };
        Ok(RopeConfig { theta, divisor })
    }

    /// Returns the rotation of a head of `head` values in the published files of GTE, where these
    /// parameters are `rope_scaling`.
    ///
    /// The scaling of GTE is static: it does not depend on the length of the text.
    /// <https://huggingface.co/Alibaba-NLP/new-impl/blob/40ced75c3017eb27626c9d4ea981bde21a2662f4/modeling.py>
    pub(super) fn static_ntk(&self, head: usize, theta: f64) -> Result<RopeConfig, EngineError> {
        if self.kind() != "ntk" {
            return Err(mismatch(format!("rope_type {} is not supported", quote(self.kind()))));
        }
        if self.mixed_b.is_some() {
            return Err(mismatch("mixed_b of rope_scaling is not supported"));
        }
        let factor = self.factor("factor of rope_scaling")?;
        if factor < 1.0 {
            return Err(mismatch(format!(
                "factor of rope_scaling is {factor}, expected 1 or more"
            )));
        }
        #[expect(clippy::cast_precision_loss, reason = "a size is at most MAX_SIZE")]
        let divisor = factor.powf(2.0 / head as f64);
        Ok(RopeConfig {
            theta: positive("rope_theta", theta * factor)?,
            divisor: positive("factor of rope_scaling", divisor)?,
        })
    }

    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default")
    }

    fn factor(&self, name: &str) -> Result<f64, EngineError> {
        positive(name, self.factor.ok_or_else(|| mismatch(format!("{name} is missing")))?)
    }
}

/// Kind of layer: the tokens that a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerKind {
    /// The whole text.
    Full,
    /// A window around the token.
    Local,
}

/// Returns the kind of each of `count` layers: those in `layer_types`, or else `Full` where
/// `is_full` returns `true` for the number of the layer.
pub(super) fn layer_kinds(
    layer_types: Option<&[String]>,
    count: usize,
    is_full: impl Fn(usize) -> bool,
) -> Result<Vec<LayerKind>, EngineError> {
    check_layer_count(count)?;
    let Some(names) = layer_types else {
        let kind = |index| if is_full(index) { LayerKind::Full } else { LayerKind::Local };
        return Ok((0..count).map(kind).collect());
    };
    if names.len() != count {
        return Err(mismatch(format!(
            "layer_types has {} layers, but num_hidden_layers is {count}",
            names.len()
        )));
    }
    let kind = |name: &String| match &**name {
        FULL => Ok(LayerKind::Full),
        LOCAL => Ok(LayerKind::Local),
        _ => Err(mismatch(format!("layer_types has {}; known: {FULL}, {LOCAL}", quote(name)))),
    };
    names.iter().map(kind).collect()
}

/// Checks that every `pattern`-th layer exists, and returns whether a layer is one of them, counted
/// with `first` in front of the first layer.
pub(super) fn every(
    field: &str,
    pattern: usize,
    first: usize,
) -> Result<impl Fn(usize) -> bool, EngineError> {
    if pattern == 0 {
        return Err(mismatch(format!("{field} is 0")));
    }
    Ok(move |index: usize| (index + first).is_multiple_of(pattern))
}

/// Returns the distance `window`, which comes from `field`, if it has a permitted size.
pub(super) fn window(field: &str, window: usize) -> Result<usize, EngineError> {
    check_at_most(field, window, MAX_SIZE)?;
    Ok(window)
}
