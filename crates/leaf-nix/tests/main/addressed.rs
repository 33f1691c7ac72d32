//! Content-addressed derivations, where the settings have them on.

use leaf_core::job::{Installable, Origin};

use crate::lab::Lab;
use crate::tests;

tests![a_content_addressed_derivation_is_built_with_its_path_and_its_hash];

fn a_content_addressed_derivation_is_built_with_its_path_and_its_hash() {
    let mut lab = Lab::new();
    lab.set(|settings| {
        settings.options.insert(
            "extra-experimental-features".to_owned(),
            "ca-derivations".to_owned(),
        );
    });
    let of = |lab: &Lab, name: &str, script: &str| -> Installable {
        let addressed =
            "__contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\";";
        let inner = lab.derivation("inner", script, addressed);
        let outer = lab.derivation(
            "outer",
            "read x < $inner; echo $x > $out",
            &format!("inner = {inner}; {addressed}"),
        );
        lab.file(name, &outer)
    };
    let first = lab.build(of(&lab, "first", "echo same > $out"));
    let first = first.result.unwrap_or_else(|why| panic!("{why}: {}", first.log));
    assert_eq!((first.origin, first.built), (Some(Origin::Built), 2));
    assert!(first.nar_sha256.contains_key("out"), "{first:?}");
    // Another derivation with the same outcome: nothing that needs it is built again.
    let second = lab.build(of(&lab, "second", "x=same; echo $x > $out"));
    let second = second
        .result
        .unwrap_or_else(|why| panic!("{why}: {}", second.log));
    assert_eq!((second.store_path, second.built), (first.store_path, 1));
}
