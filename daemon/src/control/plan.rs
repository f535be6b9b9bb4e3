//! Plans and explanations: what is asked for, and how the answer reads.

use tidemark_core::config::Paused;
use tidemark_core::plan::{Plan, Promotable};
use tidemark_core::status::{Role, Status};
use tidemark_core::types::SiteId;
use tidemark_core::verb::{Assertion, PromotionClass, Verb, VerbError};
use tidemark_proto::admin as wire;
use tidemark_proto::admin::plan_request::Verb as Asked;

use super::engine::{Disposal, EngineError, PeerKey, Scope, Switchover, VolumeInfo, VolumeKey, WitnessInfo};
use super::invalid::{Invalid, field};
use super::policy::{self, PolicyPatch};
use super::state::{self, StateText};
use super::{answer, refusal, request, service};

/// What a verb would do, or why it would be refused.
pub type Foretold = Result<Plan, EngineError>;

/// A verb whose plan is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// A verb of the copy itself.
    Copy(Verb),
    /// A switchover.
    Switchover(Switchover),
    /// A change of policy.
    Policy(PolicyPatch),
    /// Another peer, or none.
    Peer(Option<PeerKey>),
    /// Growth.
    Resize {
        /// Bytes, a multiple of 512.
        size: u64,
    },
    /// Release.
    Release,
    /// Removal of a sealed branch.
    DropBranch {
        /// Its number.
        number: u32,
        /// Although records in it may have been acknowledged.
        acknowledged: bool,
    },
    /// Removal of a volume: of this site's copy, or out of its group.
    Delete {
        /// What is removed.
        scope: Scope,
        /// What becomes of the files.
        disposal: Disposal,
        /// Although it is in use, or its peer would have no primary.
        force: bool,
    },
}

impl Planned {
    /// True when it is about one volume; false when it is about all of a group, which any of them then names as well.
    pub fn is_of_volume(&self) -> bool {
        match self {
            Self::Resize { .. } | Self::Release => true,
            Self::Delete { scope, .. } => *scope == Scope::Volume,
            // Of the fields this one is the volume's.
            Self::Policy(patch) => patch.frontend.is_some(),
            Self::Copy(_) | Self::Peer(_) | Self::Switchover(_) | Self::DropBranch { .. } => false,
        }
    }
}

/// Why a volume is as it is.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The volume.
    pub info: VolumeInfo,
    /// The agent's witness.
    pub witness: Option<WitnessInfo>,
    /// What each verb would do, by its name.
    pub verbs: Vec<(&'static str, Foretold)>,
}

/// What one request asks about.
#[derive(Debug)]
pub(super) enum Question {
    Volume(VolumeKey, Planned),
    Peer(PeerKey),
}

/// The verb of a request by its name, and what it asks about.
pub(super) fn question(request: &wire::PlanRequest) -> Result<(&'static str, Question), Invalid> {
    let now = service::now();
    let asked = request.verb.as_ref().ok_or_else(|| field("verb", "names no verb to plan"))?;
    let of = |volume: &str, planned| Ok::<_, Invalid>(Question::Volume(request::volume(volume)?, planned));
    Ok(match asked {
        Asked::Promote(r) => ("promote", of(&r.volume, Planned::Copy(request::promote(r, now)?))?),
        Asked::Demote(r) => ("demote", of(&r.volume, Planned::Copy(Verb::Demote { force: r.force }))?),
        Asked::Switchover(r) => ("switchover", of(&r.volume, Planned::Switchover(request::switchover(r)?))?),
        Asked::Pause(r) => ("pause", of(&r.volume, Planned::Copy(request::pause(r)?))?),
        Asked::Resume(r) => ("resume", of(&r.volume, Planned::Copy(request::resume(r)))?),
        Asked::DropPeer(r) => ("drop-peer", of(&r.volume, Planned::Copy(request::drop_peer(r, now)?))?),
        Asked::SetPolicy(r) => {
            let wanted = r.policy.as_ref().ok_or_else(|| field("policy", "names no field to change"))?;
            ("volume set", of(&r.volume, Planned::Policy(policy::patch(wanted)?))?)
        }
        Asked::SetPeer(r) => {
            ("volume set --peer-site", of(&r.volume, Planned::Peer(request::peer_choice(&r.peer_site)?))?)
        }
        Asked::Reseed(r) => ("reseed", of(&r.volume, Planned::Copy(Verb::Reseed))?),
        Asked::Release(r) => ("volume release", of(&r.volume, Planned::Release)?),
        Asked::Delete(r) => {
            let (scope, disposal) = (request::scope(r.whole_group), request::disposal(r.disposal)?);
            (deletion_of(scope), of(&r.volume, Planned::Delete { scope, disposal, force: r.force })?)
        }
        Asked::Resize(r) => {
            let size = request::size(r.size_bytes)?;
            ("volume resize", of(&r.volume, Planned::Resize { size })?)
        }
        Asked::AbortIo(r) => ("abort-io", of(&r.volume, Planned::Copy(Verb::AbortIo))?),
        Asked::Drain(r) => ("drain", of(&r.volume, Planned::Copy(Verb::Drain))?),
        Asked::Verify(r) => ("verify", of(&r.volume, Planned::Copy(Verb::Verify))?),
        Asked::DropBranch(r) => {
            let (number, _) = request::drop_branch(r, now)?;
            ("branch drop", of(&r.volume, Planned::DropBranch { number, acknowledged: r.acknowledged })?)
        }
        Asked::RemovePeer(r) => ("peer remove", Question::Peer(request::peer(&r.peer)?)),
    })
}

fn deletion_of(scope: Scope) -> &'static str {
    match scope {
        Scope::Volume => "volume delete",
        Scope::Group => "group delete",
    }
}

/// The verbs that an explanation tells about, without any argument that accepts or forces something, and promotion by a person's
/// word beside the bare one. `scope`: what the removal of this site's copy removes; `peer`: the other site, where there is one.
pub fn explained_verbs(scope: Scope, peer: Option<SiteId>) -> Vec<(&'static str, Planned)> {
    let word = || Assertion { who: String::new(), why: String::new(), at: service::now() };
    let promote = |by_word: bool| {
        Planned::Copy(Verb::Promote {
            assert_peer_fenced: by_word.then(word),
            max_loss_bytes: None,
            max_loss_seconds: None,
            allow_unproven: false,
        })
    };
    let switchover = |to| Planned::Switchover(Switchover { to: PeerKey::Site(to), detach: false, force: false });
    let switchover = peer.map(|peer| ("switchover", switchover(peer)));
    let verbs = vec![
        ("promote", promote(false)),
        ("promote --assert-peer-fenced", promote(true)),
        ("demote", Planned::Copy(Verb::Demote { force: false })),
        ("pause --ship", Planned::Copy(Verb::Pause(Paused { ship: true, floor: false }))),
        ("pause --floor", Planned::Copy(Verb::Pause(Paused { ship: false, floor: true }))),
        ("drop-peer", Planned::Copy(Verb::DropPeer(word()))),
        ("reseed", Planned::Copy(Verb::Reseed)),
        ("verify", Planned::Copy(Verb::Verify)),
        ("drain", Planned::Copy(Verb::Drain)),
        ("abort-io", Planned::Copy(Verb::AbortIo)),
        ("volume set --peer-site=", Planned::Peer(None)),
        ("volume release", Planned::Release),
        (deletion_of(scope), Planned::Delete { scope, disposal: Disposal::Trash, force: false }),
    ];
    verbs.into_iter().chain(switchover).collect()
}

// ---- answers ----------------------------------------------------------------------------------------------------------------

pub(super) fn verb_plan(verb: &str, foretold: Foretold) -> wire::VerbPlan {
    let verb = verb.to_owned();
    match foretold {
        Err(why) => wire::VerbPlan { verb, refusal: Some(engine_refusal(&why)), ..Default::default() },
        Ok(plan) => {
            let loss = plan.loss;
            wire::VerbPlan {
                verb,
                steps: plan.steps,
                promotion_class: loss.map(|loss| loss.class.to_string()).unwrap_or_default(),
                loss_bytes: loss.map_or(0, |loss| loss.bytes),
                loss_ms: loss.map_or(0, |loss| loss.ms),
                waits: plan
                    .waits
                    .iter()
                    .map(|w| wire::Wait { what: w.what.to_owned(), at_most_ms: w.at_most_ms })
                    .collect(),
                refusal: None,
            }
        }
    }
}

pub(super) fn engine_refusal(why: &EngineError) -> wire::Refusal {
    match why {
        EngineError::Verb(error) => verb_refusal(error),
        other => {
            let code = refusal::reason_of(other).to_owned();
            wire::Refusal { code, reason: other.to_string(), lifted_by: String::new() }
        }
    }
}

fn verb_refusal(error: &VerbError) -> wire::Refusal {
    wire::Refusal {
        code: refusal::verb_reason(error).to_owned(),
        reason: error.reason(),
        lifted_by: error.lifted_by().to_owned(),
    }
}

pub(super) fn promotable(promotable: &Promotable) -> wire::Promotable {
    let lossy = promotable.loss.filter(|loss| loss.class == PromotionClass::Lossy);
    wire::Promotable {
        promotion_class: promotable.class().to_owned(),
        loss_bytes: lossy.map_or(0, |loss| loss.bytes),
        loss_ms: lossy.map_or(0, |loss| loss.ms),
        needs_word: promotable.needs_word,
        waits_ms: promotable.waits_ms,
        blockers: promotable.blockers.iter().map(verb_refusal).collect(),
    }
}

pub(super) fn explanation(explained: Explained) -> wire::Explanation {
    let status = explained.info.status.as_deref().ok();
    let lease_left_ms = explained.witness.as_ref().and_then(|witness| witness.lease).map(|(_, left)| left.as_millis());
    wire::Explanation {
        arbiter: answer::state(arbiter(status, explained.witness.as_ref())),
        lease_left_ms: lease_left_ms.and_then(|ms| u64::try_from(ms).ok()),
        waits_for: status.map(waits_for).unwrap_or_default(),
        verbs: explained.verbs.into_iter().map(|(verb, foretold)| verb_plan(verb, foretold)).collect(),
        volume: Some(answer::volume(explained.info)),
    }
}

/// Who decides between the sites.
fn arbiter(status: Option<&Status>, witness: Option<&WitnessInfo>) -> StateText {
    let text = |code, text: String, reason: String| StateText { code, text, normal: reason.is_empty(), reason };
    let arbitrates = status.is_some_and(|status| status.config.lease_gen != 0);
    match witness {
        _ if !arbitrates => {
            text("none", "nobody: a person decides when the sites do not see each other".into(), String::new())
        }
        None => text("witness", "the witness".into(), "this agent has none configured: [witness]".into()),
        Some(witness) => {
            let fault = witness.fault.clone().map(|why| format!("it does not answer: {why}"));
            text(
                "witness",
                format!("the witness ({} at {})", witness.backend, witness.place),
                fault.unwrap_or_default(),
            )
        }
    }
}

/// Everything that is not as it should be, with what would change that.
fn waits_for(status: &Status) -> Vec<String> {
    let aspects = [
        ("role", state::role(&status.role)),
        ("copy", state::copy(&status.copy)),
        ("link", state::link(&status.link)),
        ("protection", state::protection(status)),
    ];
    let abnormal = aspects.into_iter().filter(|(_, state)| !state.normal);
    let mut out: Vec<String> =
        abnormal.map(|(name, state)| format!("{name}: {}: {}", state.text, state.reason)).collect();
    if status.requests > 0 && status.role != Role::Primary {
        out.push(format!(
            "{} requests wait, and are answered when the volume serves, or fail by abort-io",
            status.requests
        ));
    }
    out
}
