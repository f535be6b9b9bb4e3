//! What a verb would do, and why a volume is as it is.

use serde::Serialize;
use tidemark_proto::admin as pb;

use super::volume::Volume;
use super::{State, explained, mirror};
use crate::output::{Paint, Report, Table, Tone, fields};
use crate::units;

mirror! {
    /// Why something is or would be refused.
    Refusal of Refusal { code: String, reason: String, lifted_by: String }
}
mirror! {
    /// Something that a verb would wait for.
    Wait of Wait { what: String, at_most_ms: u64 }
}

impl Refusal {
    /// The reason, and what would lift it.
    pub fn text(&self) -> String {
        match self.lifted_by.as_str() {
            "" => self.reason.clone(),
            lifted_by => format!("{}; lifted by: {lifted_by}", self.reason),
        }
    }
}

/// What a promotion of a copy would be now.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Promotable {
    pub promotion_class: String,
    pub loss_bytes: u64,
    pub loss_ms: u64,
    pub needs_word: bool,
    pub waits_ms: u64,
    pub blockers: Vec<Refusal>,
}

impl From<pb::Promotable> for Promotable {
    fn from(promotable: pb::Promotable) -> Self {
        Self {
            promotion_class: promotable.promotion_class,
            loss_bytes: promotable.loss_bytes,
            loss_ms: promotable.loss_ms,
            needs_word: promotable.needs_word,
            waits_ms: promotable.waits_ms,
            blockers: promotable.blockers.into_iter().map(Into::into).collect(),
        }
    }
}

impl Promotable {
    /// In one line.
    pub fn text(&self) -> String {
        let mut text = loss(&self.promotion_class, self.loss_bytes, self.loss_ms);
        if self.needs_word {
            text += ", by a person's word (--assert-peer-fenced)";
        }
        if self.waits_ms > 0 {
            text += &format!(", within {}", units::span_ms(self.waits_ms));
        }
        text
    }
}

fn loss(class: &str, bytes: u64, ms: u64) -> String {
    match class {
        "lossy" => format!("lossy: {} and {}", units::bytes(bytes), units::span_ms(ms)),
        class => class.to_owned(),
    }
}

/// What a verb would do now.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct VerbPlan {
    pub verb: String,
    pub steps: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub promotion_class: String,
    pub loss_bytes: u64,
    pub loss_ms: u64,
    pub waits: Vec<Wait>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

impl From<pb::VerbPlan> for VerbPlan {
    fn from(plan: pb::VerbPlan) -> Self {
        Self {
            verb: plan.verb,
            steps: plan.steps,
            promotion_class: plan.promotion_class,
            loss_bytes: plan.loss_bytes,
            loss_ms: plan.loss_ms,
            waits: plan.waits.into_iter().map(Into::into).collect(),
            refusal: plan.refusal.map(Into::into),
        }
    }
}

impl VerbPlan {
    fn lines(&self) -> Vec<String> {
        if let Some(refusal) = &self.refusal {
            return vec![format!("refused: {}", refusal.text())];
        }
        let mut lines = self.steps.clone();
        if !self.promotion_class.is_empty() {
            lines.push(format!("loss: {}", loss(&self.promotion_class, self.loss_bytes, self.loss_ms)));
        }
        lines.extend(
            self.waits.iter().map(|w| format!("waits for {}: {} at most", w.what, units::span_ms(w.at_most_ms))),
        );
        lines
    }
}

impl Report for VerbPlan {
    fn table(&self, _: Paint) -> String {
        let verdict = if self.refusal.is_some() { "" } else { " would" };
        let lines: Vec<_> = self.lines().into_iter().map(|line| format!("  {line}")).collect();
        format!("{}{verdict}, nothing is changed:\n{}", self.verb, lines.join("\n"))
    }
}

/// Why a volume is as it is at one site.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are documented at the message")]
pub struct Explanation {
    pub volume: Volume,
    pub arbiter: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_left_ms: Option<u64>,
    pub waits_for: Vec<String>,
    pub verbs: Vec<VerbPlan>,
}

impl From<pb::Explanation> for Explanation {
    fn from(explanation: pb::Explanation) -> Self {
        Self {
            volume: explanation.volume.unwrap_or_default().into(),
            arbiter: explanation.arbiter.unwrap_or_default().into(),
            lease_left_ms: explanation.lease_left_ms,
            waits_for: explanation.waits_for,
            verbs: explanation.verbs.into_iter().map(Into::into).collect(),
        }
    }
}

impl Explanation {
    fn head(&self) -> String {
        let name_of = |id: &str| self.volume.known_site(id).unwrap_or(id).to_owned();
        let mut pairs = vec![("volume", self.volume.name.clone()), ("not open", self.volume.open_error.clone())];
        if let Some(status) = &self.volume.status {
            pairs.extend(status.aspects().iter().map(|(name, state)| (*name, explained(state))));
            pairs.extend(status.config_fields(name_of).into_iter().filter(|(name, _)| *name != "arbiter"));
            pairs.push(("promotable", status.promotable.text()));
        }
        pairs.push(("who decides", explained(&self.arbiter)));
        pairs.extend(self.lease_left_ms.map(|ms| ("lease lasts", units::span_ms(ms))));
        fields(&pairs)
    }
}

impl Report for Explanation {
    fn table(&self, paint: Paint) -> String {
        let mut parts = vec![self.head()];
        if !self.waits_for.is_empty() {
            let lines: Vec<_> = self.waits_for.iter().map(|w| paint.line(Tone::Warning, &format!("  {w}"))).collect();
            parts.push(format!("waits for:\n{}", lines.join("\n")));
        }
        let mut table = Table::new(&["VERB", "NOW", "WHAT"]);
        for verb in &self.verbs {
            let now = if verb.refusal.is_some() { "refused" } else { "goes" };
            let what = match &verb.refusal {
                Some(refusal) => refusal.text(),
                None => verb.lines().join("; "),
            };
            table.row(Tone::Plain, [verb.verb.clone(), now.to_owned(), what]);
        }
        parts.push(table.render(paint));
        parts.join("\n\n")
    }
}
