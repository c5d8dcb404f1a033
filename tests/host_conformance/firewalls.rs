//! Other people's firewalls: never touched, and told of when they stand in the way. The
//! tables are made as those programs make them, in a namespace of the test's own.

use banger::host::Host;
use banger::host::firewall::{conflicts, conflicts_below};
use banger::host::link::Links;
use banger::plan::step::{Outside, Step};

use super::lab::{self, Lab, ip, run_program};
use super::{VM, first_address, subnet, tap};
use crate::support::census::settings;

fn rules(publish: &[&str]) -> Step {
    Step::NetRules {
        vm: VM,
        address: first_address(),
        subnet: subnet(),
        outside: Outside::Nat,
        publish: publish.iter().map(|port| port.parse().unwrap()).collect(),
    }
}

/// Carries out a script of nft's.
fn nft(script: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    run_program("nft", &format!("-f {}", file.path().display()));
}

/// As iptables-nft shows them with Docker 20 and later.
const DOCKER: &str = "
table ip nat {
    chain DOCKER { }
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
}
table ip filter {
    chain DOCKER { }
    chain DOCKER-USER { counter return
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        oifname \"docker0\" ct state related,established counter accept
    }
}";

/// As ufw 0.36 makes them through iptables-nft.
const UFW: &str = "
table ip filter {
    chain ufw-before-input { }
    chain ufw-user-input { tcp dport 22 counter accept
    }
    chain ufw-user-forward { }
    chain INPUT { type filter hook input priority filter; policy drop;
        counter jump ufw-before-input
        counter jump ufw-user-input
    }
    chain FORWARD { type filter hook forward priority filter; policy drop;
        counter jump ufw-user-forward
    }
}";

/// As firewalld 1.3 makes them.
const FIREWALLD: &str = "
table inet firewalld {
    chain filter_IN_public { tcp dport 22 accept
    }
    chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname \"lo\" accept
        goto filter_IN_public
    }
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        reject with icmpx admin-prohibited
    }
}";

#[test]
fn the_users_own_rules_and_interfaces_are_left_alone() {
    lab::run("the_users_own_rules_are_left_alone", |lab: &mut Lab| {
        let _server = lab.connect_to_internet();
        nft(DOCKER);
        nft("table inet filter {
            set nat { type ipv4_addr; elements = { 172.30.0.2 }; }
            map published { type inet_service : ipv4_addr; elements = { 80 : 172.30.0.2 }; }
        }
        table bridge banger {
            set taps { type ifname; elements = { \"bgr-0000002a\" }; }
        }");
        ip("link add other type bridge");
        let seen = || {
            let rules = run_program("nft", "list ruleset");
            let link = run_program("ip", "-o link show other");
            (rules + &link, settings())
        };
        let foreign = || {
            let tables = run_program("nft", "list tables");
            let theirs = tables
                .lines()
                .filter(|line| !line.contains("banger_banger0"));
            let listed = theirs.map(|table| run_program("nft", &format!("list {table}")));
            listed.collect::<String>()
        };
        let (before, theirs) = (seen(), foreign());
        let rules = rules(&["8080:80", "0.0.0.0:8081:80"]);
        lab.host.ensure(&tap(VM)).unwrap();
        lab.host.ensure(&rules).unwrap();
        assert_eq!(foreign(), theirs, "while a VM runs");
        lab.host.absent(&rules).unwrap();
        lab.host.absent(&tap(VM)).unwrap();
        assert_eq!(foreign(), theirs, "after it");
        lab.host.remove_network().unwrap();
        lab.host.remove_network().unwrap();
        assert_eq!(seen(), before);
        assert_eq!(Links::open().unwrap().find("banger0").unwrap(), None);
    });
}

#[test]
fn each_firewall_in_the_way_is_named_with_what_to_type_until_it_knows_our_bridge() {
    let name = "each_firewall_in_the_way_is_named";
    lab::run(name, |lab: &mut Lab| {
        lab.host.ensure(&tap(VM)).unwrap();
        lab.host.ensure(&rules(&["8080:80"])).unwrap();
        assert!(conflicts("banger0").is_ok(), "none but ours");
        let cases = [
            (
                DOCKER,
                "Docker (table filter)",
                "DOCKER-USER -i banger0",
                "ip filter DOCKER-USER",
            ),
            (
                UFW,
                "ufw (table filter)",
                "ufw route allow in on banger0",
                "ip filter ufw-user-forward",
            ),
            (
                FIREWALLD,
                "firewalld (table",
                "--add-interface=banger0",
                "inet firewalld filter_IN_public",
            ),
        ];
        for (tables, whose, advice, chain) in cases {
            nft(tables);
            let before = run_program("nft", "list ruleset");
            let complaint = conflicts("banger0").unwrap_err();
            assert!(complaint.contains(whose), "{complaint}");
            assert!(complaint.contains(advice), "{complaint}");
            assert!(!complaint.contains("another firewall"), "{complaint}");
            assert_eq!(run_program("nft", "list ruleset"), before);
            nft(&format!("add rule {chain} iifname \"banger0\" accept"));
            assert!(conflicts("banger0").is_ok(), "{whose} knows of it");
            let theirs = tables
                .lines()
                .filter_map(|line| line.strip_prefix("table "));
            for table in theirs {
                nft(&format!("delete table {}", table.trim_end_matches(" {")));
            }
        }
        let nowhere = tempfile::tempdir().unwrap();
        assert!(conflicts_below(nowhere.path(), "banger0").is_ok());
    });
}

#[test]
fn an_unknown_firewall_that_drops_is_named_by_its_table() {
    lab::run("an_unknown_firewall_that_drops", |lab: &mut Lab| {
        lab.host.ensure(&tap(VM)).unwrap();
        nft("table inet mine {
            chain f { type filter hook forward priority 0; policy drop;
            }
        }");
        let complaint = conflicts("banger0").unwrap_err();
        assert!(
            complaint.contains("another firewall (table mine)"),
            "{complaint}"
        );
    });
}
