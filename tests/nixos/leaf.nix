# A leaf from its boot to a container that answers, and past a reboot, on a real NixOS machine.
#
# It needs the Nix package set and KVM (or patience): `nix build .#checks.x86_64-linux.nixos-leaf`. Where those can't be
# had it is evaluated only: `nix eval .#checks.x86_64-linux.nixos-leaf.drvPath`.
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
        # The template is built without a network: all that it is made of is there.
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

    with subtest("the leaf shows itself"):
        assert "machine" in json.dumps(leafctl("leaf show"))

    with subtest("the hardware has a network interface and a disk"):
        kinds = {device["kind"] for device in leafctl("hardware list")["devices"]}
        assert len(kinds) > 3, kinds

    with subtest("a container of the template minimal starts, and is seen by the host's own tools"):
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

    with subtest("secrets are root's alone"):
        machine.fail("sudo -u nobody cat /var/lib/cim-leaf/context.json")

    before = machine.succeed("leafctl --context /var/lib/cim-leaf/context.json --json events --since 1 | wc -l")
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("leafd.service")

    with subtest("after a reboot the events are there and the container runs again"):
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
