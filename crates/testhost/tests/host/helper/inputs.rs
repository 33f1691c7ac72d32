//! What a container sees of its host: binds, secrets, its environment; and what it is refused.

use serde_json::json;

use super::{Leaf, WAITS, creation};
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    (
        "a_container_gets_only_allowed_binds_and_secrets_and_no_link_is_followed",
        inputs,
    ),
    ("a_bind_that_is_constantly_replaced_never_escapes", race),
];

/// How often a container is started while its bind is exchanged.
const TRIES: u32 = 8;

fn inputs() -> Outcome {
    let leaf = Leaf::new()?;
    leaf.host.ok(
        "mkdir -p /srv/data /srv/ro /srv/evil /srv/mixed; chown 1234:0 /srv/mixed; chown 1234:1234 /srv/data; chmod 700 /srv/data; echo read >/srv/ro/file\n\
         ln -s /etc /srv/evil/etc; printf top >/run/secrets/token; chmod 600 /run/secrets/token\n\
         ln -s /etc/shadow /run/secrets/shadow",
    )?;
    let looks = leaf.system(
        "looks",
        &format!(
            "exec 2>&1; {{ echo \"A=$A\"; echo mine >/srv/data/new; $b cat /ro/file; echo x >/ro/new || echo closed; \
             $b cat $CREDENTIALS_DIRECTORY/token; }} >/seen; {WAITS}"
        ),
    )?;
    let value = "one two % $HOME \"q\" \\ 'x'";
    let options = json!({
        "environment": {"A": value},
        "binds": [{"source": "/srv/data", "writable": true}, {"source": "/srv/ro", "target": "/ro"}],
        "secrets": {"token": "/run/secrets/token"},
    });
    leaf.create("web", &looks, 1, options)?;
    leaf.start("web")?;
    let seen = leaf.host.ok("cat /var/lib/nixos-containers/web/seen")?;
    ensure(seen.starts_with(&format!("A={value}\n")), &*seen)?;
    ensure(
        seen.contains("\nread\n") && seen.contains("closed") && seen.ends_with("top"),
        &*seen,
    )?;
    let owner = leaf.host.ok("stat -c %u:%g /srv/data/new; cat /srv/data/new")?;
    ensure(
        owner == "1234:1234\nmine\n",
        format!("its root acts as the owner of the directory: {owner}"),
    )?;
    leaf.stop("web", 20)?;
    let copies = leaf
        .host
        .ok("ls /run/cim-leaf/containers/edge/web | grep -v '[.]lock$'")?;
    ensure(
        copies.trim() == "status.json",
        format!("no copy of a secret stays: {copies}"),
    )?;
    leaf.destroy("web")?;
    ensure(
        leaf.host.ok("cat /srv/data/new")? == "mine\n",
        "what it saw stays",
    )?;
    leaf.nothing_is_left("web")?;
    for (options, words) in [
        (
            json!({"binds": [{"source": "/etc"}]}),
            "not in a directory allowed by this leaf",
        ),
        (json!({"binds": [{"source": "/srv/evil/etc"}]}), "symbolic link"),
        (
            json!({"binds": [{"source": "/srv/mixed", "writable": true}]}),
            "chown 1234:1234 /srv/mixed",
        ),
        (
            json!({"binds": [{"source": "/srv/../etc"}]}),
            "not a plain absolute path",
        ),
        (
            json!({"secrets": {"a": "/etc/shadow"}}),
            "not in a directory allowed by this leaf",
        ),
        (json!({"secrets": {"a": "/run/secrets/shadow"}}), "symbolic link"),
        (
            json!({"secrets": {"--bind=/": "/run/secrets/token"}}),
            "not a valid credential name",
        ),
        (
            json!({"environment": {"A=x --bind=/": "x"}}),
            "not a valid variable name",
        ),
    ] {
        leaf.fails(
            "CreateContainer",
            &creation("web", &looks, 1, options, false),
            "Refused",
            words,
        )?;
    }
    leaf.nothing_is_left("web")
}

fn race() -> Outcome {
    let leaf = Leaf::new()?;
    leaf.host
        .ok("mkdir -p /srv/race/directory; echo fine >/srv/race/directory/mark")?;
    let looks = leaf.system("looks", &format!("$b ls /seen >/list; {WAITS}"))?;
    let options = json!({"binds": [{"source": "/srv/race/directory", "target": "/seen"}]});
    leaf.create("web", &looks, 1, options)?;
    let exchange = leaf.host.start(
        "cd /srv/race; while :; do mv -T directory away; ln -s /etc directory; rm directory; mv -T away directory; done 2>/dev/null",
    )?;
    let (mut started, mut refused) = (0, 0);
    for _ in 0..TRIES {
        match leaf.ask("StartContainer", &super::starting("web", 90))? {
            Ok(()) => {
                let list = leaf.host.ok("cat /var/lib/nixos-containers/web/list")?;
                ensure(list == "mark\n", format!("it saw another directory: {list}"))?;
                leaf.stop("web", 20)?;
                started += 1;
            }
            // The helper saw it, or, later, the unit did.
            Err((kind, reason)) => {
                let told = ["symbolic link", "does not exist"]
                    .iter()
                    .any(|why| reason.contains(why));
                ensure(told, format!("{kind}: {reason}"))?;
                refused += 1;
            }
        }
    }
    exchange.kill()?;
    ensure(started + refused == TRIES, "each start came to an end")?;
    leaf.host
        .ok("cd /srv/race; [ -e directory/mark ] || mv -T away directory || { rm directory; mv -T away directory; }")?;
    leaf.start("web")?;
    leaf.stop("web", 20)?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}
