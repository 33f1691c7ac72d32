# Runs a leaf on a NixOS machine: boot, a container that becomes ready, a restart of the daemon, a reboot.
#
# It needs nixpkgs' package set and KVM (without KVM it is slow): `nix build .#checks.x86_64-linux.nixos-leaf`. To
# evaluate it only: `nix eval .#checks.x86_64-linux.nixos-leaf.drvPath`.
{ self, ... }:
{
  name = "leaf";

  nodes.machine =
    { config, pkgs, ... }:
    {
      imports = [ self.nixosModules.default ];
      virtualisation = {
        memorySize = 2048;
        writableStore = true;
        # The template is built without a network, from these paths.
        additionalPaths = [
          config.services.cim-leaf.package
          config.services.cim-leaf.package.leaf-init
        ];
      };
      nix.settings = {
        experimental-features = [
          "nix-command"
          "flakes"
        ];
        substituters = [ ];
      };
      environment.systemPackages = [ pkgs.jq ];
      services.cim-leaf = {
        enable = true;
        name = "machine";
        nats.embedded.enable = true;
        containers.enable = true;
      };
    };

  testScript = ''
    import json

    def leafctl(arguments):
        return json.loads(machine.succeed(
            f"leafctl --context /var/lib/cim-leaf/context.json --json {arguments}"
        ))

    machine.wait_for_unit("leafd.service")

    with subtest("leaf show returns the leaf's name"):
        assert "machine" in json.dumps(leafctl("leaf show"))

    with subtest("root needs no context on the leaf itself"):
        assert "machine" in machine.succeed("env -u LEAFCTL_CONTEXT leafctl leaf show")

    with subtest("the hardware has devices of several kinds"):
        kinds = {device["kind"] for device in leafctl("hardware list")["devices"]}
        assert len(kinds) > 3, kinds

    with subtest("a container of the template minimal starts, and nixos-container lists it"):
        leafctl("container create web --template minimal")
        leafctl("container start web")
        machine.wait_until_succeeds(
            "leafctl --context /var/lib/cim-leaf/context.json --json container show web | jq -e '.phase == \"running\"'"
        )
        assert "web" in machine.succeed("nixos-container list")

    with subtest("the container survives the daemon"):
        machine.succeed("systemctl restart leafd.service")
        machine.wait_for_unit("leafd.service")
        machine.succeed(
            "leafctl --context /var/lib/cim-leaf/context.json --json container show web | jq -e '.phase == \"running\"'"
        )

    with subtest("other users can't read the leaf's credentials"):
        machine.fail("sudo -u nobody cat /var/lib/cim-leaf/context.json")

    before = machine.succeed("leafctl --context /var/lib/cim-leaf/context.json --json events --since 1 | wc -l")
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("leafd.service")

    with subtest("after a reboot the events still exist and the container runs again"):
        after = machine.succeed("leafctl --context /var/lib/cim-leaf/context.json --json events --since 1 | wc -l")
        assert int(after) >= int(before), (before, after)
        machine.wait_until_succeeds(
            "leafctl --context /var/lib/cim-leaf/context.json --json container show web | jq -e '.phase == \"running\"'"
        )

    with subtest("a stopped container is destroyed without a trace"):
        leafctl("container stop web")
        leafctl("container destroy web")
        machine.fail("test -e /etc/nixos-containers/web.conf")
  '';
}
