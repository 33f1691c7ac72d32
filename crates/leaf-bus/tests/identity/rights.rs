//! The check of rights: nothing is wrong on a right server, and one right too few or too many is one line.

use anyhow::{Context as _, ensure};
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::identity::{Permissions, admin_caller, daemon_caller};
use leaf_bus::rights::{self, Action, Finding, Found, Users};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, ContainerName};
use leaf_core::subject;
use libtest_mimic::Trial;

use crate::support::{Site, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("on_a_right_server_every_right_is_as_it_must_be", all_right),
        trial(
            "a_right_too_few_or_too_many_of_a_person_is_exactly_one_line",
            person,
        ),
        trial(
            "a_right_too_few_or_too_many_of_the_leafs_users_is_exactly_one_line",
            leafs_users,
        ),
        trial(
            "a_right_too_few_or_too_many_of_a_container_is_exactly_one_line",
            container,
        ),
        trial(
            "one_account_for_both_users_and_a_container_that_can_t_answer_are_found",
            together,
        ),
        trial("a_check_changes_nothing_where_a_user_may_do_everything", harmless),
        trial("a_user_that_is_refused_is_one_line", refused),
    ]
}

fn user(site: &Site, credentials: Secret, caller: &Caller) -> ConnectSettings {
    ConnectSettings {
        credentials: Credentials::Text(credentials),
        inbox_prefix: subject::inbox_prefix(caller),
        ..ConnectSettings::new(&site.server.client_url())
    }
}

/// The container whose user the check tries.
fn probe() -> ContainerName {
    ContainerName::new("cim-check").expect("a name")
}

fn users(site: &Site) -> Users {
    let identity = &site.identity;
    Users {
        streams: Some(user(site, identity.leaf_credentials(), &daemon_caller())),
        callers: Some(user(site, identity.service_credentials(), &daemon_caller())),
        person: Some((
            admin_caller(),
            user(site, identity.admin_credentials(), &admin_caller()),
        )),
        container: Some(user(
            site,
            identity.container_credentials(&probe()),
            &probe().caller(&leaf()),
        )),
    }
}

/// A site whose streams exist, as after a leaf's first start.
async fn site() -> anyhow::Result<Site> {
    let site = Site::start().await?;
    let keeper = super::keeper_of(&site).await?;
    async_nats::jetstream::new(keeper.client.clone())
        .create_key_value(async_nats::jetstream::kv::Config {
            bucket: subject::STATE_BUCKET.to_owned(),
            ..Default::default()
        })
        .await?;
    Ok(site)
}

async fn wrong(users: &Users) -> Vec<Finding> {
    let report = rights::check(&leaf(), users).await;
    report
        .findings
        .into_iter()
        .filter(|finding| !finding.ok)
        .collect()
}

async fn all_right() -> anyhow::Result<()> {
    let site = site().await?;
    let report = rights::check(&leaf(), &users(&site)).await;
    ensure!(report.ok, "{:#?}", wrong(&users(&site)).await);
    for finding in &report.findings {
        ensure!(finding.found != Found::Untried, "{finding:?}");
    }
    for action in [
        Action::Connect,
        Action::Publish,
        Action::Request,
        Action::Subscribe,
        Action::Hear,
        Action::Answer,
        Action::Reach,
    ] {
        ensure!(
            report.findings.iter().any(|finding| finding.action == action),
            "{action:?}"
        );
    }
    // Without the leaf's own users a person's check says what it leaves out.
    let alone = Users {
        person: users(&site).person,
        ..Users::default()
    };
    let report = rights::check(&leaf(), &alone).await;
    ensure!(report.ok);
    let untried: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.found == Found::Untried)
        .collect();
    ensure!(
        untried.len() == 3 && untried.iter().all(|finding| finding.action == Action::Hear),
        "{untried:?}"
    );
    site.end().await
}

/// Takes one right after the other from a user, and gives it each that it must not have; each time the check must find
/// exactly that. `given` makes the users of the check from the user's permissions.
async fn each_right(
    right: &Permissions,
    of: &[Finding],
    given: impl Fn(&Permissions) -> Users,
) -> anyhow::Result<()> {
    for number in 0..right.publish.len() + right.subscribe.len() {
        let mut few = right.clone();
        let publishes = number < right.publish.len();
        let taken = if publishes {
            few.publish.remove(number)
        } else {
            few.subscribe.remove(number - right.publish.len())
        };
        let found = wrong(&given(&few)).await;
        let [finding] = &found[..] else {
            anyhow::bail!("without {taken}: {found:#?}");
        };
        ensure!(
            finding.expected
                && finding.found == Found::Refused
                && publishes == (finding.action != Action::Subscribe)
                && finding
                    .advice
                    .as_ref()
                    .is_some_and(|advice| advice.contains(&taken)),
            "without {taken}: {finding:?}"
        );
    }
    let forbidden = of
        .iter()
        .filter(|finding| !finding.expected && finding.action != Action::Reach);
    let mut tried = 0;
    for Finding { action, subject, .. } in forbidden {
        let mut many = right.clone();
        match action {
            Action::Subscribe => many.subscribe.push(subject.clone()),
            _ if many.publish_denied.contains(subject) => {
                many.publish_denied.retain(|denied| denied != subject);
            }
            _ => many.publish.push(subject.clone()),
        }
        let found = wrong(&given(&many)).await;
        let [finding] = &found[..] else {
            anyhow::bail!("with {action:?} {subject}: {found:#?}");
        };
        ensure!(
            finding.action == *action && finding.subject == *subject && finding.found == Found::Allowed,
            "with {action:?} {subject}: {finding:?}"
        );
        tried += 1;
    }
    ensure!(tried > 20, "only {tried} rights that it must not have");
    Ok(())
}

async fn person() -> anyhow::Result<()> {
    let site = site().await?;
    let admin = admin_caller();
    let given = |permissions: &Permissions| Users {
        person: Some((
            admin.clone(),
            user(&site, site.identity.user_credentials(&admin, permissions), &admin),
        )),
        ..Users::default()
    };
    let right = Permissions::person(&admin);
    let report = rights::check(&leaf(), &given(&right)).await;
    each_right(&right, &report.findings, given).await?;
    site.end().await
}

async fn leafs_users() -> anyhow::Result<()> {
    let site = site().await?;
    let daemon = daemon_caller();
    let streams = |permissions: &Permissions| Users {
        streams: Some(user(
            &site,
            site.identity.trusted_credentials(&daemon, permissions),
            &daemon,
        )),
        ..Users::default()
    };
    let right = Permissions::keeper(&leaf());
    let report = rights::check(&leaf(), &streams(&right)).await;
    each_right(&right, &report.findings, streams).await?;

    let callers = |permissions: &Permissions| Users {
        callers: Some(user(
            &site,
            site.identity.user_credentials(&daemon, permissions),
            &daemon,
        )),
        ..Users::default()
    };
    let right = Permissions::service(&leaf());
    let report = rights::check(&leaf(), &callers(&right)).await;
    each_right(&right, &report.findings, callers).await?;
    site.end().await
}

async fn container() -> anyhow::Result<()> {
    let site = site().await?;
    let caller = probe().caller(&leaf());
    let given = |permissions: &Permissions| Users {
        container: Some(user(
            &site,
            site.identity.user_credentials(&caller, permissions),
            &caller,
        )),
        ..Users::default()
    };
    let right = Permissions::container(&leaf(), &probe());
    let report = rights::check(&leaf(), &given(&right)).await;
    each_right(&right, &report.findings, given).await?;
    site.end().await
}

async fn together() -> anyhow::Result<()> {
    let site = site().await?;
    let caller = probe().caller(&leaf());
    let mut silent = Permissions::container(&leaf(), &probe());
    silent.responses = None;
    let mut given = users(&site);
    given.container = Some(user(
        &site,
        site.identity.user_credentials(&caller, &silent),
        &caller,
    ));
    let found = wrong(&given).await;
    ensure!(
        matches!(&found[..], [finding] if finding.action == Action::Answer && finding.found == Found::Refused),
        "{found:#?}"
    );

    // Both of the leaf's users in the callers' account, with the right permissions.
    let daemon = daemon_caller();
    let keeper = site
        .identity
        .user_credentials(&daemon, &Permissions::keeper(&leaf()));
    let given = Users {
        streams: Some(user(&site, keeper, &daemon)),
        callers: users(&site).callers,
        ..Users::default()
    };
    let found = wrong(&given).await;
    ensure!(
        matches!(&found[..], [finding] if finding.action == Action::Reach && finding.found == Found::Allowed),
        "{found:#?}"
    );
    site.end().await
}

async fn harmless() -> anyhow::Result<()> {
    let site = site().await?;
    let keeper = super::keeper_of(&site).await?;
    let jetstream = async_nats::jetstream::new(keeper.client.clone());
    let events = jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: subject::event_stream(&leaf()),
            subjects: vec![subject::events_of(&leaf())],
            ..Default::default()
        })
        .await?;
    let leases = jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: subject::LEASE_STREAM.to_owned(),
            subjects: vec![subject::beats()],
            ..Default::default()
        })
        .await?;
    let everything = Permissions {
        publish: vec![">".to_owned()],
        subscribe: vec![">".to_owned()],
        ..Permissions::default()
    };
    // In the account of the streams, whose subjects the streams store.
    let admin = admin_caller();
    let all = site.identity.trusted_credentials(&admin, &everything);
    let all = user(&site, all, &admin);
    let given = Users {
        streams: Some(all.clone()),
        callers: Some(all.clone()),
        person: Some((admin, all.clone())),
        container: Some(all),
    };
    let found = wrong(&given).await;
    ensure!(found.len() > 80, "{} lines", found.len());
    for mut stream in [events, leases] {
        let state = &stream.info().await?.state;
        ensure!(state.last_sequence == 0, "{state:?}");
    }
    let mut bucket = jetstream
        .get_stream(format!("KV_{}", subject::STATE_BUCKET))
        .await?;
    let state = &bucket.info().await.context("the bucket")?.state;
    ensure!(state.last_sequence == 0, "{state:?}");
    let names: Vec<String> = futures::TryStreamExt::try_collect(jetstream.stream_names()).await?;
    ensure!(names.len() == 3, "{names:?}");
    site.end().await
}

async fn refused() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let stranger = Site::start().await?;
    let given = Users {
        person: Some((
            admin_caller(),
            user(&site, stranger.identity.admin_credentials(), &admin_caller()),
        )),
        ..Users::default()
    };
    let report = rights::check(&leaf(), &given).await;
    let [finding] = &report.findings[..] else {
        anyhow::bail!("{report:#?}");
    };
    ensure!(
        finding.action == Action::Connect && finding.found == Found::Refused && !finding.ok,
        "{finding:?}"
    );
    stranger.end().await?;
    site.end().await
}
