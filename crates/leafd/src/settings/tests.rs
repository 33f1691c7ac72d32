use super::*;

fn refused(text: &str) -> String {
    let mut settings = match Settings::parse(text) {
        Ok(settings) => settings,
        Err(error) => return error.to_string(),
    };
    settings
        .name
        .get_or_insert(LeafName::new("edge").expect("a name"));
    settings.check().expect_err(text).to_string()
}

#[test]
fn minimal_settings_have_the_defaults() {
    let settings = Settings::parse("name = 'edge-1'\n[nats.embedded]").expect("settings");
    settings.check().expect("good");
    assert_eq!(
        settings.containers.address_pool.leaf_address().to_string(),
        "10.233.0.1"
    );
    assert_eq!(settings.nix.max_jobs, 2);
}

#[test]
fn errors_name_the_setting_and_the_valid_values() {
    for (text, says) in [
        ("[nats]", "no NATS server is set"),
        ("[nats]\nurl = 'a'\n[nats.embedded]", "exclude each other"),
        ("[nats]\nurl = ' '", "nats.url: is empty"),
        ("[nats]\nurl = 'a'\ncert = '/c'", "cert and key go together"),
        (
            "[nats.embedded.hub]\nurl = 'nats://hub.example:7422'\ncredentials = '/c'",
            "nats.embedded.hub.url: is not encrypted: nats://hub.example",
        ),
        (
            "[nats.embedded.hub]\nurl = 'tls://a:7422, nats://[2001:db8::1]:7422'\ncredentials = '/c'",
            "is not encrypted: nats://2001:db8::1",
        ),
        (
            "[nats.embedded.hub]\nurl = 'tls://me:pw@hub.example'\ncredentials = '/c'",
            "has a user or password",
        ),
        (
            "[nats.embedded.hub]\nurl = 'hub.example'\ncredentials = '/c'",
            "has no scheme",
        ),
        ("[nats.embedded.hub]\nurl = ' , '\ncredentials = '/c'", "is empty"),
        (
            "[nats.embedded.hub]\nurl = 'tls://hub.example'",
            "missing field `credentials`",
        ),
        ("colour = 1\n[nats]", "unknown field `colour`"),
        ("name = 'Edge 1'\n[nats]", "is not a leaf name"),
        ("state_dir = 'here'\n[nats.embedded]", "not an absolute path"),
        ("[nats.embedded]\nport = 70000", "port"),
        (
            "[nats.embedded]\n[containers]\naddress_pool = '8.8.0.0/16'",
            "not a private /16",
        ),
        (
            "[nats.embedded]\naddress = '127.0.0.1'\n[containers]\nenable = true",
            "nats.embedded.address: is 127.0.0.1, but containers reach the leaf's server at 10.233.0.1 only",
        ),
        (
            "[nats.embedded]\naddress = '10.233.0.1'\n[containers]\nenable = true\naddress_pool = '10.7.0.0/16'",
            "at 10.7.0.1 only",
        ),
        (
            "[nats.embedded]\nadmin_hours = 0",
            "nats.embedded.admin_hours: must be from 1 to 8760",
        ),
        (
            "[nats]\ncontainer_hours = 0\n[nats.embedded]",
            "nats.container_hours: must be from 1 to 8760",
        ),
        (
            "[nats]\nurl = 'tls://h:4222'\ncontainer_hours = 9000",
            "nats.container_hours: must be from 1 to 8760 (a year), not 9000",
        ),
        (
            "[nats.embedded]\n[nix]\nmax_jobs = 0",
            "nix.max_jobs: must be at least 1",
        ),
        (
            "[nats.embedded]\n[nix.options]\n'--x' = 'y'",
            "not the name of a Nix setting",
        ),
        (
            "[nats.embedded]\n[containers]\nready_timeout_seconds = 0",
            "must be from 1 to 3600",
        ),
        ("[nats.embedded]\n[events]\nmax_bytes = 5", "events.max_bytes"),
        (
            "[nats.embedded]\n[labels]\nSite = 'a'",
            "labels: \"Site\" is not the key of a label",
        ),
        (
            "[nats.embedded]\n[labels]\nsite = ''",
            "the value \"\" of the label site is empty",
        ),
        ("[nats.embedded]\n[labels]\nsite = 'a,b'", "comma"),
        (
            "[nats.embedded]\n[labels]\nsite = 7",
            "line 3, column 8 (site): invalid type: integer",
        ),
        (
            "[nats.embedded]\nmax_storage_bytes = 104857600",
            "nats.embedded.max_storage_bytes: is 104857600, but the stream of events alone needs 1073741824 bytes",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(says), "{text:?} gave {error:?}");
    }
}

#[test]
fn errors_of_a_file_name_the_place_and_quote_nothing_of_it() {
    for (text, place) in [
        ("[nats]\nurl = nats://me:hush@hub:4222", "line 2, column "),
        ("[nats]\nurl = \"nats://me:hush@hub:4222", "line 2, column "),
        ("[nats]\nurl = 'nats://me:hush@hub:4222' 'x'", "line 2, column "),
        (
            "nats = 'nats://me:hush@hub:4222'",
            "line 1, column 8 (nats): invalid type: string, expected",
        ),
        (
            "[nats]\nembedded = \"nats://hush@hub, expected \\\"it\"",
            "line 2, column 12",
        ),
        (
            "[nats]\nurl = 'a'\n[nix.options]\naccess-tokens = ['github.com=hush']",
            "line 4, column ",
        ),
        (
            "[nats]\nurl = 'a'\n[nix.options]\nhushes = { a = 'github.com=hush' }",
            "line 4, column ",
        ),
        ("[nats]\nurl = ['nats://me:hush@hub']", "line 2, column "),
        ("name = 'nats://me:hush@hub'\n[nats]", "line 1, column "),
        (
            "[events]\nmax_bytes = 'hush'\n[nats]",
            "line 2, column 13 (max_bytes): invalid type: string, expected u64",
        ),
    ] {
        let error = Settings::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(place), "{text}: {error}");
        assert!(
            !error.contains("hush@") && !error.contains("me:hush") && !error.contains("=hush"),
            "{text}: {error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}
