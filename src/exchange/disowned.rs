//! A stream that went its own way while its claim was on the way to the store.

use super::finish::{self, Rest};
use super::{Context, Flow, Input, RequestId, State, StoreReply, Transition, Whom};
use crate::config::Rule;
use crate::key::Key;
use crate::store::{Command, Reply};
use crate::telemetry::Outcome;
use crate::time::Timestamp;
use std::rc::Rc;

/// The stream went its own way while the question was under way; a claim that it may have won is
/// given back.
#[derive(Debug)]
pub(super) struct Disowned {
    pub(super) rule: Rc<Rule>,
    pub(super) whom: Whom,
    pub(super) key: Key,
    pub(super) question: RequestId,
    pub(super) lease_until: Timestamp,
    pub(super) rest: Rest,
}

impl Disowned {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        _now: Timestamp,
    ) -> Transition {
        match input {
            Input::Store(StoreReply { question, reply }) if question == self.question => {
                match reply {
                    // Another request's record: there is nothing to give back.
                    Ok(Reply::Exists(_)) => match self.rest {
                        Rest::Gone => Transition::new(State::Over, Flow::Continue),
                        Rest::MoreToCome(_) | Rest::LastByte | Rest::Answered(_) => {
                            context.pass(&self.rule, Outcome::Rejected)
                        }
                    },
                    // Granted, or perhaps granted. Nothing has run, and a release without the claim changes
                    // nothing.
                    Ok(Reply::Claimed { .. } | Reply::Done | Reply::NotOwner) | Err(_) => {
                        let given = matches!(reply, Ok(Reply::Claimed { .. }));
                        let command = Command::Release { key: self.key, token: context.token };
                        let Self { rule, whom, lease_until, rest, .. } = self;
                        finish::finish_command(
                            context,
                            rule,
                            whom,
                            command,
                            lease_until,
                            given,
                            rest,
                        )
                    }
                }
            }
            Input::StreamEnded => {
                self.rest = Rest::Gone;
                Transition::new(State::Disowned(self), Flow::Continue)
            }
            Input::Store(_) | Input::Request(_) | Input::Worker(_) | Input::Response(_) => {
                Transition::new(State::Disowned(self), Flow::Continue)
            }
        }
    }
}
