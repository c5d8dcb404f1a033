//! Clients: each asks one thing after another, over a connection that may end.

use std::collections::{BTreeMap, VecDeque};

use crate::model::ids::VmId;
use crate::model::limits::Limits;
use crate::model::net::NetRequest;
use crate::model::units::Bytes;
use crate::model::vm::{InitMode, RootModeRequest, VmmRequest};
use crate::plan::record::Removal;
use crate::plan::request::{AfterCreate, Changes, ClientId, CreateRequest, Force, OpId, Request};

/// One client.
#[derive(Debug, Clone)]
pub(super) struct Client {
    /// A new one for each connection.
    pub(super) connection: ClientId,
    /// What it still asks, one after the other.
    pub(super) script: VecDeque<Request>,
    /// What it waits for.
    pub(super) open: Option<OpId>,
}

/// The clients, and which connection each VM goes with.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients {
    pub(super) all: Vec<Client>,
    pub(super) owners: BTreeMap<VmId, ClientId>,
    /// Which client holds which VM, by what it was given with its answer: that outlives
    /// the connection, and ends with the client.
    pub(super) holds: BTreeMap<VmId, usize>,
    last_connection: u64,
}

impl Clients {
    pub(super) fn with(scripts: Vec<Vec<Request>>) -> Clients {
        let mut clients = Clients::default();
        for script in scripts {
            let connection = clients.fresh();
            clients.all.push(Client {
                connection,
                script: script.into(),
                open: None,
            });
        }
        clients
    }

    pub(super) fn fresh(&mut self) -> ClientId {
        self.last_connection += 1;
        ClientId(self.last_connection)
    }

    pub(super) fn is_connected(&self, connection: ClientId) -> bool {
        self.all
            .iter()
            .any(|client| client.connection == connection)
    }

    /// Whether the client that the VM goes with lives and knows of it.
    pub(super) fn has_owner(&self, vm: VmId) -> bool {
        let owner = self.owners.get(&vm);
        owner.is_some_and(|owner| self.is_connected(*owner)) || self.holds.contains_key(&vm)
    }

    /// A client was told of its VM on this connection.
    pub(super) fn hold(&mut self, vm: VmId, connection: ClientId) {
        let index = self.all.iter().position(|c| c.connection == connection);
        if let Some(index) = index
            && self.owners.get(&vm) == Some(&connection)
        {
            self.holds.insert(vm, index);
        }
    }

    pub(super) fn holds_any(&self, index: usize) -> bool {
        self.holds.values().any(|holder| *holder == index)
    }

    /// Ends a connection; the client comes back with another.
    pub(super) fn reconnect(&mut self, index: usize) -> ClientId {
        let fresh = self.fresh();
        let client = &mut self.all[index];
        client.open = None;
        std::mem::replace(&mut client.connection, fresh)
    }

    pub(super) fn reconnect_all(&mut self) {
        for index in 0..self.all.len() {
            self.reconnect(index);
        }
    }
}

pub(super) fn create(name: &str, net: NetRequest, removal: Removal) -> Request {
    Request::Create(Box::new(CreateRequest {
        name: Some(name.parse().unwrap()),
        image: "small".to_owned(),
        kernel: "cloud".to_owned(),
        vcpu: 1,
        memory: Bytes::mib(512),
        work_disk: Bytes::gib(1),
        root_disk: Bytes::gib(1),
        root_mode: RootModeRequest::Auto,
        net,
        publish: Vec::new(),
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: Vec::new(),
        workdir: None,
        limits: Limits::default(),
        git: None,
        removal,
        then: AfterCreate::Start,
    }))
}

/// The same creation with another root.
pub(super) fn with_root(request: Request, root_mode: RootModeRequest) -> Request {
    match request {
        Request::Create(create) => Request::Create(Box::new(CreateRequest {
            root_mode,
            ..*create
        })),
        other => other,
    }
}

/// The same creation from another image.
pub(super) fn of_image(image: &str, request: Request) -> Request {
    match request {
        Request::Create(create) => Request::Create(Box::new(CreateRequest {
            image: image.to_owned(),
            ..*create
        })),
        other => other,
    }
}

pub(super) fn start(name: &str) -> Request {
    let target = name.to_owned();
    Request::Start { target }
}

pub(super) fn stop(name: &str) -> Request {
    let target = name.to_owned();
    Request::Stop { target }
}

pub(super) fn kill(name: &str) -> Request {
    let target = name.to_owned();
    Request::Kill { target }
}

pub(super) fn restart(name: &str) -> Request {
    let target = name.to_owned();
    Request::Restart { target }
}

pub(super) fn reset(name: &str) -> Request {
    let target = name.to_owned();
    Request::Reset { target }
}

pub(super) fn grow(name: &str) -> Request {
    let changes = Changes {
        work_disk: Some(Bytes::gib(3)),
        ..Changes::default()
    };
    let target = name.to_owned();
    Request::Set { target, changes }
}

pub(super) fn breathe(name: &str) -> Request {
    let changes = Changes {
        memory_target: Some(Bytes::mib(256)),
        ..Changes::default()
    };
    let target = name.to_owned();
    Request::Set { target, changes }
}

pub(super) fn delete(name: &str, force: Force) -> Request {
    let target = name.to_owned();
    Request::Delete { target, force }
}
