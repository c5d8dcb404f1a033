//! What a guest may say next on its control port, in one run of it. Pure.
//!
//! ```text
//!  Hello --hello--> Token --ready, with the token--> no call is taken any more
//!    |                |
//!    +----failed------+--failed, with the token----> the same
//! ```
//!
//! Any process of a guest can dial the port, and the configuration holds what only its
//! root should know. So it is given out once, to the first that asks: `/init` does so
//! before it runs anything of the image. Whoever calls next must have the token that came
//! with it, which `/init` shows to nobody but the agent.

use crate::proto::frame::{Kind, encoded_json};
use crate::proto::guest::{GuestCall, GuestConfig, ReadyAck};

/// Whose call is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// That of `/init`, before anything of the image runs.
    Hello,
    /// That of whoever has this token.
    Token(String),
}

impl Turn {
    /// The answer to a call, as it goes over the wire. One that is given is not given
    /// again, whether or not it arrives: whoever has not got it does not boot.
    ///
    /// # Errors
    /// It is not the caller's turn; the words are ours alone.
    pub fn answer(
        &mut self,
        call: &GuestCall,
        configure: impl FnOnce() -> GuestConfig,
    ) -> Result<Vec<u8>, &'static str> {
        match (&*self, call) {
            (Turn::Hello, GuestCall::Hello { .. }) => {
                let config = configure();
                *self = Turn::Token(config.token.clone());
                Ok(encoded_json(Kind::Reply, &config))
            }
            (Turn::Hello, GuestCall::Failed { token: None, .. }) => Ok(acknowledged()),
            (Turn::Token(ours), GuestCall::Ready { token, .. }) if ours == token => {
                Ok(acknowledged())
            }
            (Turn::Token(ours), GuestCall::Failed { token, .. })
                if token.as_ref() == Some(ours) =>
            {
                Ok(acknowledged())
            }
            (Turn::Hello, _) => Err("it spoke before it had its configuration"),
            (Turn::Token(_), GuestCall::Hello { .. }) => {
                Err("it asked for its configuration again")
            }
            (Turn::Token(_), _) => Err("it does not have the token of this boot"),
        }
    }
}

fn acknowledged() -> Vec<u8> {
    encoded_json(Kind::Reply, &ReadyAck {})
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::proto::agent::AGENT_VERSION;

    /// A configuration with this token and nothing else.
    fn config(token: &str) -> GuestConfig {
        GuestConfig {
            token: token.to_owned(),
            ..GuestConfig::default()
        }
    }

    pub fn hello() -> GuestCall {
        GuestCall::Hello {
            version: AGENT_VERSION,
            kernel_release: "6.1".to_owned(),
        }
    }

    pub fn ready(token: &str) -> GuestCall {
        GuestCall::Ready {
            version: AGENT_VERSION,
            token: token.to_owned(),
            init: "agent".to_owned(),
            phases: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub fn failed(token: Option<&str>) -> GuestCall {
        GuestCall::Failed {
            token: token.map(str::to_owned),
            what: "x".to_owned(),
        }
    }

    fn is_taken(turn: &Turn, call: &GuestCall) -> bool {
        turn.clone().answer(call, || config("ours")).is_ok()
    }

    #[test]
    fn configuration_is_given_once() {
        let mut turn = Turn::Hello;
        assert!(turn.answer(&hello(), || config("ours")).is_ok());
        assert_eq!(turn, Turn::Token("ours".to_owned()));
        let again = turn.answer(&hello(), || unreachable!("it is not even made"));
        assert_eq!(again, Err("it asked for its configuration again"));
    }

    #[test]
    fn before_hello_only_a_failure_without_token_is_taken() {
        assert!(is_taken(&Turn::Hello, &failed(None)));
        assert!(!is_taken(&Turn::Hello, &failed(Some(""))));
        assert!(!is_taken(&Turn::Hello, &ready("")));
        assert!(!is_taken(&Turn::Hello, &ready("ours")));
    }

    #[test]
    fn after_hello_only_the_token_is_believed() {
        let turn = Turn::Token("ours".to_owned());
        assert!(is_taken(&turn, &ready("ours")));
        assert!(is_taken(&turn, &failed(Some("ours"))));
        for other in ["", "our", "theirs"] {
            assert!(!is_taken(&turn, &ready(other)), "{other:?}");
            assert!(!is_taken(&turn, &failed(Some(other))), "{other:?}");
        }
        assert!(!is_taken(&turn, &failed(None)));
    }
}
