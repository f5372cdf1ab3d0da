# SPDX-License-Identifier: Apache-2.0
"""Setup's parts without a host: keys, single settings, the plans of roles, differences of files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from reimzul.admin.setup import files, ini, psk, roles
from reimzul.admin.setup.apply import lock_setup, read_pending, write_pending
from reimzul.admin.setup.files import FileSpec, System, compare
from reimzul.admin.setup.psk import KeyChanges, apply_controller_changes, apply_key_changes
from reimzul.admin.setup.roles import RoleOptions, clone_steps
from reimzul.core import config
from reimzul.core.errors import ConfigError, InputError, ReimzulError

CONF = Path(__file__).parents[2] / "conf"
ONE, TWO = "ab" * 32, "cd" * 32


@pytest.fixture
def system(tmp_path: Path) -> System:
    """An image with nothing in it."""
    return System(root=tmp_path)


def put(system: System, path: str, text: str, mode: int = 0o644) -> Path:
    file = system.resolve(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


# --- keys


def test_keys_are_read_and_written_as_stunnel_has_them() -> None:
    text = f"b1:{ONE}\n\nb2:{TWO.upper()}\n"
    assert psk.parse_keys(text, "x") == {"b1": ONE, "b2": TWO}
    assert psk.format_keys(psk.parse_keys(text, "x")) == f"b1:{ONE}\nb2:{TWO}\n"


@pytest.mark.parametrize(
    "row",
    [ONE, f"b 1:{ONE}", f"../b:{ONE}", f":{ONE}", "b1:", "b1:abcd", f"b1:{ONE}0", f"b1:{'xy' * 32}", f"-b:{ONE}"],
)  # fmt: skip
def test_a_line_that_is_no_key_is_refused_by_its_number_and_never_shown(row: str) -> None:
    with pytest.raises(InputError, match="^keys.txt, line 2: not of the form name:hex") as refusal:
        psk.parse_keys(f"b0:{TWO}\n{row}\n", "keys.txt")
    assert ONE not in str(refusal.value)
    assert TWO not in str(refusal.value)


def test_two_keys_of_one_host_are_refused() -> None:
    with pytest.raises(InputError, match="line 2: a second key of b1"):
        psk.parse_keys(f"b1:{ONE}\nb1:{TWO}\n", "x")


@pytest.mark.parametrize("name", ["", "-b", ".b", "b/1", "b 1", "b:1", "b\n", "x" * 65, "localhost", "controller"])
def test_a_builder_is_not_called_that(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a builder"):
        psk.parse_name(name)


def test_a_new_key_is_64_hex_digits_and_another_each_time() -> None:
    assert re.fullmatch("[0-9a-f]{64}", psk.new_secret())
    assert psk.new_secret() != psk.new_secret()


# --- orders about keys


def test_adding_an_owner_makes_a_key_and_disconnects_nobody() -> None:
    done = apply_key_changes(KeyChanges(add=("b1", "b2")), {"localhost": ONE})
    assert set(done.keys) == {"localhost", "b1", "b2"}
    assert done.made == {name: done.keys[name] for name in ("b1", "b2")}
    assert not done.revoked


def test_an_existing_key_is_not_replaced_by_accident() -> None:
    with pytest.raises(InputError, match="b1 has a key already; --new-key"):
        apply_key_changes(KeyChanges(add=("b1",)), {"b1": ONE})


def test_a_new_key_replaces_the_first_one() -> None:
    done = apply_key_changes(KeyChanges(add=("b1",), new_key=True), {"b1": ONE})
    assert done.keys["b1"] != ONE
    assert done.revoked


def test_revoking_removes_the_key_and_disconnects() -> None:
    done = apply_key_changes(KeyChanges(revoke=("b1",)), {"localhost": ONE, "b1": ONE, "b2": TWO})
    assert set(done.keys) == {"localhost", "b2"}
    assert done.revoked


@pytest.mark.parametrize("name", ["b9", "localhost"])
def test_revoking_an_unknown_owner_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} has no key here; these have: b1, b2"):
        apply_key_changes(KeyChanges(revoke=(name,)), {"localhost": ONE, "b2": ONE, "b1": TWO})


def test_a_key_made_elsewhere_is_stored_and_not_printed() -> None:
    done = apply_key_changes(KeyChanges(add=("b1",), given={"b1": ONE}), {})
    assert (done.keys, done.made, done.revoked) == ({"b1": ONE}, {}, False)
    assert apply_key_changes(KeyChanges(add=("b1",), given={"b1": ONE}), done.keys).keys == done.keys


def test_a_key_that_is_missing_from_the_given_ones_is_an_error() -> None:
    with pytest.raises(InputError, match="there is no key of b2 among those given; there is: b1"):
        apply_key_changes(KeyChanges(add=("b2",), given={"b1": ONE}), {})


def test_a_taken_key_replaces_the_one_before() -> None:
    orders = KeyChanges(taken=("controller",), given={"controller": TWO})
    assert apply_key_changes(orders, {"controller": ONE}).revoked
    same = apply_key_changes(orders, {"controller": TWO, "b1": ONE})
    assert (same.keys, same.revoked, same.changed) == ({"controller": TWO, "b1": ONE}, False, False)


# --- the controller's own key


def test_with_bstores_key_the_controllers_own_is_made() -> None:
    theirs, ours = apply_controller_changes(KeyChanges(add=("s", "b1")), "s", {}, {})
    assert (set(theirs.made), set(ours.made)) == ({"s", "b1"}, {"controller"})
    assert ours.made["controller"] not in theirs.keys.values()  # nobody gets in here by it
    assert psk.format_own_key(ours.keys) == f"controller:{ours.keys['controller']}\n"


def test_without_bstore_there_is_no_key_to_be_made() -> None:
    for own in ({}, {"controller": ONE}):
        _, ours = apply_controller_changes(KeyChanges(add=("b1",), new_key=True), None, {}, own)
        assert (ours.keys, ours.changed) == (own, False)


def test_another_key_of_bstore_is_another_of_the_controller_too() -> None:
    with pytest.raises(InputError, match="s has a key already; --new-key"):
        apply_controller_changes(KeyChanges(add=("s",)), "s", {"s": ONE}, {"controller": ONE})
    theirs, ours = apply_controller_changes(KeyChanges(add=("s",), new_key=True), "s", {"s": ONE}, {"controller": ONE})
    assert theirs.made["s"] != ONE
    assert ours.made["controller"] != ONE


@pytest.mark.parametrize(("own", "revoke"), [({}, ()), ({"controller": TWO}, ("controller",))])
def test_where_the_controllers_own_is_missing_only_that_is_made(own: dict[str, str], revoke: tuple[str, ...]) -> None:
    theirs, ours = apply_controller_changes(KeyChanges(add=("s", "b1"), revoke=revoke), "s", {"s": ONE}, own)
    assert (theirs.keys["s"], set(theirs.made), set(ours.made)) == (ONE, {"b1"}, {"controller"})
    assert ours.made["controller"] != TWO


def test_the_controllers_own_is_revoked_and_nobody_elses() -> None:
    theirs, ours = apply_controller_changes(KeyChanges(revoke=("controller",)), None, {"s": ONE}, {"controller": TWO})
    assert (theirs.changed, ours.keys, psk.format_own_key(ours.keys)) == (False, {}, "")
    with pytest.raises(InputError, match="controller has no key here; these have: nobody"):
        apply_controller_changes(KeyChanges(revoke=("controller",)), None, {"s": ONE}, {})


def test_of_keys_made_elsewhere_the_controllers_is_taken_if_it_is_there() -> None:
    both = {"s": ONE, "controller": TWO}
    theirs, ours = apply_controller_changes(KeyChanges(add=("s",), given=both), "s", {}, {})
    assert (theirs.keys, ours.keys, theirs.made, ours.made) == ({"s": ONE}, {"controller": TWO}, {}, {})
    assert not apply_controller_changes(KeyChanges(add=("s",), given=both), "s", theirs.keys, ours.keys)[1].changed
    _, made = apply_controller_changes(KeyChanges(add=("s",), given={"s": ONE}), "s", {}, {})
    assert set(made.made) == {"controller"}
    assert not apply_controller_changes(KeyChanges(add=("s",), given={"s": ONE}), "s", {"s": ONE}, made.keys)[1].changed


def test_the_key_in_use_is_the_first_of_the_file() -> None:
    assert psk.format_own_key({"ours": ONE, "controller": TWO}) == f"controller:{TWO}\n"
    assert psk.format_own_key({"ours": ONE}) == f"ours:{ONE}\n"  # one that a person has put there


# --- single settings of reimzul.ini

INI = """\
# mine
[farm]
arches =

# about the builders
[worker]
# how many tries
tries = 3
rsync_arguments = --one
    --two
max_load: 4

# about mail
[mail]
"""


def test_a_setting_is_changed_where_it_stands() -> None:
    changed = ini.set_values(INI, {("worker", "tries"): "5"})
    assert changed == INI.replace("tries = 3", "tries = 5")


def test_one_of_several_lines_is_replaced_whole() -> None:
    changed = ini.set_values(INI, {("worker", "rsync_arguments"): "--three"})
    assert changed == INI.replace("--one\n    --two", "--three")


def test_the_other_way_to_write_it_is_known() -> None:
    assert ini.get_value(INI, "worker", "max_load") == "4"
    assert ini.set_values(INI, {("worker", "max_load"): "8"}) == INI.replace("max_load: 4", "max_load = 8")


def test_a_setting_that_is_not_there_comes_behind_the_last_of_its_section() -> None:
    changed = ini.set_values(INI, {("worker", "mock"): "mymock"})
    assert changed == INI.replace("max_load: 4\n", "max_load: 4\nmock = mymock\n")


def test_a_section_that_is_not_there_comes_last() -> None:
    assert ini.set_values(INI, {("repogen", "cores"): "2"}) == INI + "\n[repogen]\ncores = 2\n"


def test_settings_go_into_the_sample_and_come_out_of_it() -> None:
    settings = {("worker", "max_load"): "8", ("mqtt", "topic"): "farm", ("farm", "arches"): "/etc/reimzul/arches.yml"}
    text = ini.set_values(config.sample_text(), settings)
    read = config.parse_settings(text, "x")
    assert (read.worker.max_load, read.mqtt.topic, str(read.farm.arches)) == (8, "farm", "/etc/reimzul/arches.yml")
    assert len(text.splitlines()) == len(config.sample_text().splitlines())
    assert ini.set_values(text, settings) == text


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("worker", "colour", "1", "is not a setting"),
        ("workers", "tries", "1", "is not a setting"),
        ("worker", "tries", "many", "is not a whole number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(section: str, key: str, value: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"\[{section}\] {key}.* {words}"):
        ini.set_values(INI, {(section, key): value})


def test_a_setting_is_given_as_section_key_value() -> None:
    assert ini.parse_setting("worker.rsync_arguments=--bwlimit=20m -x") == (
        ("worker", "rsync_arguments"),
        "--bwlimit=20m -x",
    )
    for wrong in ("worker", "worker=1", "worker.tries", "worker.tries=1\n[x]", "[worker].tries=1"):
        with pytest.raises(InputError, match=r"not of the form section.key=value"):
            ini.parse_setting(wrong)


# --- templates


@pytest.mark.parametrize(
    ("role", "peers"),
    [("controller", ("BSTORE",)), ("bstore", ("CONTROLLER",)), ("builder", ("CONTROLLER", "BSTORE"))],
)
def test_host_names_are_filled_in_and_known_again(role: str, peers: tuple[str, ...]) -> None:
    hosts = {"CONTROLLER": "c.example.org", "BSTORE": "192.0.2.7"}
    text = roles.fill_tunnels(role, hosts)
    assert not re.search(r"^connect = [A-Z]", text, re.MULTILINE)
    assert roles.find_hosts(text) == {peer: hosts[peer] for peer in peers}
    assert roles.find_role(text) == role
    assert roles.find_hosts((CONF / f"stunnel-{role}.conf").read_text()) == {}


def test_a_controller_that_does_not_know_bstore_has_no_way_to_it() -> None:
    text = roles.fill_tunnels("controller", {})
    assert "[store]" not in text
    assert "[incoming-server]" in text
    assert text.endswith("reimzul-psk-all.txt\n")
    assert roles.fill_tunnels("controller", {"BSTORE": "BSTORE"}).startswith(text)
    assert (roles.find_role(text), roles.find_hosts(text)) == ("controller", {})


def test_a_configuration_that_is_not_ours_has_no_role() -> None:
    assert roles.find_role("[imap]\naccept = 143\n") == ""


@pytest.mark.parametrize("role", ["controller", "bstore", "builder"])
def test_every_tunnel_wants_a_key_and_tls_and_only_servers_are_reached_from_outside(role: str) -> None:
    text = (CONF / f"stunnel-{role}.conf").read_text()
    head, *services = re.split(r"^\[.+\]$", text, flags=re.MULTILINE)
    assert "\nsslVersionMin = TLSv1.2\n" in head
    assert "verify" not in text
    for service in services:
        lines = dict(re.findall(r"^(\w+) = (.+)$", service, re.MULTILINE))
        client = lines.get("client") == "yes"
        assert lines["ciphers"] == "kECDHEPSK:!eNULL"
        assert lines["PSKsecrets"] == (roles.OWN_KEY if client else roles.ACCEPTED)
        assert lines["accept" if client else "connect"].startswith("127.0.0.1:")
        assert client or int(lines["accept"]) in roles.PORTS[role]


def test_nothing_but_stunnel_listens_on_a_public_address() -> None:
    for name in ("nginx-controller.conf", "nginx-bstore.conf"):
        assert re.findall(r"^\s*listen (.+);$", (CONF / name).read_text(), re.MULTILINE) == ["127.0.0.1:80"]
    assert re.findall(r"^address = (.+)$", (CONF / "rsyncd.conf").read_text(), re.MULTILINE) == ["127.0.0.1"]
    assert "\nlistener 8883 127.0.0.1\n" in (CONF / "mosquitto-reimzul.conf").read_text()
    assert " -l 127.0.0.1 " in (CONF / "beanstalkd-service.conf").read_text()


#: In the shape of Fedora's and EL's: a server for everybody in the main file, a second one that is a comment.
NGINX_OF_FEDORA = """\
http {
    include /etc/nginx/conf.d/*.conf;

    server {
        listen       80;
        listen       [::]:80;
        server_name  _;
        root         /usr/share/nginx/html;

        # Load configuration files for the default server block.
        include /etc/nginx/default.d/*.conf;

        error_page 404 /404.html;
        location = /404.html {
        }
    }

# Settings for a TLS enabled server.
#
#    server {
#        listen       443 ssl http2;
#    }
}
"""


def test_the_server_that_fedoras_nginx_comes_with_is_taken_out() -> None:
    text = roles.remove_stock_server(NGINX_OF_FEDORA)
    assert re.findall(r"^\s*listen.*", text, re.MULTILINE) == []
    assert text.count("{") == text.count("}")
    assert "include /etc/nginx/conf.d/*.conf;" in text
    assert "#        listen       443" in text
    assert roles.remove_stock_server(text) == text


def test_somebodys_own_server_stays() -> None:
    own = NGINX_OF_FEDORA.replace("/usr/share/nginx/html", "/srv/www")
    assert roles.remove_stock_server(own) == own


# --- what differs


def test_a_file_that_is_not_there_is_new_and_nobody_is_asked(system: System) -> None:
    (change,) = compare(system, [FileSpec(path="/etc/x", text="a\n")])
    assert (change.kind, change.needs_consent, change.backup_path) == ("new", False, "")
    assert list(change.lines()) == ["--- /dev/null", "+++ /etc/x", "@@ -0,0 +1 @@", "+a"]


def test_a_file_that_is_as_it_should_be_is_no_change(system: System) -> None:
    put(system, "/etc/x", "a\n")
    assert compare(system, [FileSpec(path="/etc/x", text="a\n")]) == []


def test_a_file_that_somebody_changed_is_asked_about(system: System) -> None:
    put(system, "/etc/x", "# SPDX-License-Identifier: Apache-2.0\nb\n")
    (change,) = compare(system, [FileSpec(path="/etc/x", text="# SPDX-License-Identifier: Apache-2.0\na\n")])
    assert (change.needs_consent, change.backup_path) == (True, "")
    assert "-b" in change.lines()
    assert "+a" in change.lines()


def test_a_file_that_is_as_we_wrote_it_is_replaced_without_a_question(system: System) -> None:
    first = compare(system, [FileSpec(path="/etc/x", text="one\n")])
    files.write(system, first[0])
    files.save_checksums(system, first)
    (change,) = compare(system, [FileSpec(path="/etc/x", text="two\n")])
    assert (change.kind, change.needs_consent, change.backup_path) == ("changed", False, "")
    put(system, "/etc/x", "one and a half\n")
    (change,) = compare(system, [FileSpec(path="/etc/x", text="two\n")])
    assert change.needs_consent


def test_a_foreign_file_is_kept_once_and_as_it_was(system: System) -> None:
    put(system, "/etc/rsyncd.conf", "theirs\n", 0o640)
    for text in ("ours\n", "newer\n"):
        (change,) = compare(system, [FileSpec(path="/etc/rsyncd.conf", text=text)])
        files.write(system, change)
    kept = system.resolve("/etc/rsyncd.conf.before-reimzul")
    assert kept.read_text() == "theirs\n"
    assert kept.stat().st_mode & 0o777 == 0o640
    assert system.text("/etc/rsyncd.conf") == "newer\n"


def test_a_file_that_is_nothing_but_comments_is_kept_and_not_asked_about(system: System) -> None:
    put(system, "/etc/rsyncd.conf", "# uid = nobody\n\n; and so on\n")
    (change,) = compare(system, [FileSpec(path="/etc/rsyncd.conf", text="ours\n")])
    assert (change.kind, change.needs_consent, change.backup_path) == (
        "changed",
        False,
        "/etc/rsyncd.conf.before-reimzul",
    )


def test_of_a_secret_only_its_size_is_shown_and_nothing_is_kept(system: System) -> None:
    put(system, "/k", f"b1:{ONE}\n", 0o600)
    (change,) = compare(system, [FileSpec(path="/k", text=f"b1:{TWO}\nb2:{TWO}\n", mode=0o600, secret=True)])
    assert (change.needs_consent, change.backup_path) == (False, "")
    assert list(change.lines()) == [
        "+2 secret lines", "-1 secret line",
    ]  # fmt: skip
    files.write(system, change)
    assert [path.name for path in system.root.iterdir()] == ["k"]


def test_a_mode_that_is_too_open_is_corrected(system: System) -> None:
    put(system, "/k", "x\n", 0o644)
    (change,) = compare(system, [FileSpec(path="/k", text="x\n", mode=0o600, secret=True)])
    assert list(change.lines()) == ["mode 644 -> 600"]
    files.write(system, change)
    assert system.mode("/k") == 0o600


def test_a_file_is_never_more_open_than_it_should_be(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = os.replace

    def replace(source: Path, goal: Path) -> None:
        seen.append(source.stat().st_mode & 0o777)
        real(source, goal)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fchmod", lambda *_: seen.append(0o600))
    (change,) = compare(system, [FileSpec(path="/k", text="x\n", mode=0o644)])
    files.write(system, change)
    assert seen == [0o600, 0o600]


def test_a_file_that_cannot_be_written_stays_as_it_was(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    put(system, "/etc/x", "before\n")
    (change,) = compare(system, [FileSpec(path="/etc/x", text="after\n")])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ReimzulError, match="^/etc/x: cannot be written: no space left on device$"):
        files.write(system, change)
    assert [path.name for path in system.resolve("/etc").iterdir()] == ["x"]
    assert system.text("/etc/x") == "before\n"


def test_a_file_that_is_no_text_is_not_replaced(system: System) -> None:
    put(system, "/etc/x", "").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="/etc/x: not UTF-8 at byte 0"):
        compare(system, [FileSpec(path="/etc/x", text="a\n")])


# --- what roles want


def paths(role: str, system: System, **wishes: object) -> set[str]:
    hosts = {"CONTROLLER": "c", "BSTORE": "b"}
    return {file.path for file in roles.plan_role(role, system, RoleOptions(hosts=hosts, **wishes)).files}  # type: ignore[arg-type]


def test_each_role_has_its_files(system: System) -> None:
    for unit in ("batch", "notifier", "signer"):
        put(system, f"/usr/lib/systemd/system/reimzul-{unit}.service", "")
    common = {
        "/etc/sysctl.d/90-reimzul.conf", "/etc/systemd/system/stunnel@reimzul.service.d/reimzul.conf", roles.TUNNELS,
        roles.SETTINGS,
    }  # fmt: skip
    assert paths("builder", system, own_key="k") == common | {roles.OWN_KEY}
    assert paths("bstore", system, own_key="k") == common | {
        roles.OWN_KEY, roles.ACCEPTED, "/etc/rsyncd.conf", "/etc/nginx/conf.d/reimzul.conf",
        "/etc/systemd/system/rsync.service.d/reimzul.conf", roles.FOLDERS,
    }  # fmt: skip
    controllers = common | {
        roles.ACCEPTED, "/etc/nginx/conf.d/reimzul.conf", "/etc/logrotate.d/reimzul",
        "/etc/systemd/system/beanstalkd.service.d/reimzul.conf",
    }  # fmt: skip
    assert paths("controller", system) == controllers
    assert paths("controller", system, own_key="k") == controllers | {roles.OWN_KEY}


def test_a_persons_settings_are_not_touched_unless_one_is_set(system: System) -> None:
    put(system, roles.SETTINGS, INI)
    assert roles.SETTINGS not in paths("builder", system)
    assert roles.SETTINGS in paths("builder", system, settings={("worker", "tries"): "5"})


def test_units_come_in_the_order_of_their_dependencies(system: System) -> None:
    wishes = RoleOptions(hosts={"CONTROLLER": "c", "BSTORE": "b"}, instances=2)
    assert roles.plan_role("controller", system, RoleOptions()).units == (
        "beanstalkd", "nginx", "stunnel@reimzul", "reimzul-notifier", "reimzul-batch",
    )  # fmt: skip
    assert roles.plan_role("builder", system, wishes).units == (
        "stunnel@reimzul",
        "reimzul-worker@1",
        "reimzul-worker@2",
    )
    assert roles.plan_role("bstore", system, wishes).units == (
        "rsync", "nginx", "stunnel@reimzul", "reimzul-repogen-worker@1", "reimzul-repogen-worker@2", "reimzul-signer",
    )  # fmt: skip


def test_rsyncd_has_its_name_of_fedora_where_it_is_called_so(system: System) -> None:
    put(system, "/usr/lib/systemd/system/rsyncd.service", "")
    plan = roles.plan_role("bstore", system, RoleOptions(hosts={"CONTROLLER": "c"}))
    assert plan.units[0] == "rsyncd"
    concerned = {file.path for file in plan.files if "rsyncd" in file.restarts}
    assert concerned == {"/etc/rsyncd.conf", "/etc/systemd/system/rsyncd.service.d/reimzul.conf"}


def test_debians_other_units_of_the_same_services_conflict(system: System) -> None:
    put(system, "/etc/systemd/system/sockets.target.wants/beanstalkd.socket", "")
    put(system, "/etc/rc3.d/S01stunnel4", "")
    assert roles.plan_role("controller", system, RoleOptions()).unwanted == ("beanstalkd.socket", "stunnel4")
    put(system, "/etc/stunnel/mine.conf", "")  # somebody needs it
    assert roles.plan_role("controller", system, RoleOptions()).unwanted == ("beanstalkd.socket",)


def test_workers_that_are_too_many_are_disabled(system: System) -> None:
    for number in (1, 2, 3, 10):
        put(system, f"/etc/systemd/system/multi-user.target.wants/reimzul-worker@{number}.service", "")
    wishes = RoleOptions(hosts={"CONTROLLER": "c", "BSTORE": "b"}, instances=2)
    assert roles.plan_role("builder", system, wishes).unwanted == ("reimzul-worker@3", "reimzul-worker@10")


def test_repositories_are_public_only_by_the_option(system: System) -> None:
    hosts = {"CONTROLLER": "c"}
    assert roles.PUBLIC not in paths("bstore", system)
    plan = roles.plan_role("bstore", system, RoleOptions(hosts=hosts, public_port=8080))
    (text,) = [file.text for file in plan.files if file.path == roles.PUBLIC]
    assert "    listen 8080;\n" in text
    assert 8080 in plan.ports
    put(system, roles.PUBLIC, text)
    assert roles.current_port(system, roles.PUBLIC) == 8080
    assert roles.plan_role("bstore", system, RoleOptions(hosts=hosts)).removed == {roles.PUBLIC: "nginx"}


def test_the_pages_are_served_only_by_the_option(system: System) -> None:
    assert roles.PAGES not in paths("controller", system)
    plan = roles.plan_role("controller", system, RoleOptions(pages_port=8080))
    (text,) = [file.text for file in plan.files if file.path == roles.PAGES]
    assert text == (CONF / "nginx-pages.conf").read_text().replace("listen 80;", "listen 8080;")
    assert (plan.units[-1], 8080 in plan.ports) == (roles.PAGES_UNIT, True)
    put(system, roles.PAGES, text)
    plan = roles.plan_role("controller", system, RoleOptions())
    assert (plan.removed, plan.unwanted) == ({roles.PAGES: "nginx"}, (roles.PAGES_UNIT,))


def test_the_pages_are_served_from_their_folder_and_the_store_from_where_this_host_reaches_it(system: System) -> None:
    settings = {("pages", "folder"): "/var/pages", ("bstore", "base_url"): "http://localhost/bstore/repo"}
    plan = roles.plan_role("controller", system, RoleOptions(pages_port=80, settings=settings))
    (text,) = [file.text for file in plan.files if file.path == roles.PAGES]
    assert "    root /var/pages;\n" in text
    assert "        proxy_pass http://127.0.0.1/bstore/;\n" in text
    for folder in ("/var/my pages", "/var/pages;}", "/var/$pages"):
        with pytest.raises(InputError, match=r"^\[pages\] folder: nginx does not accept '"):
            roles.plan_role("controller", system, RoleOptions(pages_port=80, settings={("pages", "folder"): folder}))


@pytest.mark.parametrize(
    ("given", "port", "name", "url"),
    [
        (None, 80, "bstore.example.org", "http://bstore.example.org/"),
        (None, 8080, "bstore.example.org", "http://bstore.example.org:8080/"),
        (None, 0, "bstore.example.org", ""),
        ("https://farm.example.org", 80, "bstore.example.org", "https://farm.example.org/"),
        ("", 8080, "bstore.example.org", "http://bstore.example.org:8080/"),
        (None, 80, "s", "http://this.example.org/"),  # the key's name need not be a host's
    ],
)
def test_people_reach_bstore_by_its_name_and_public_port(
    system: System, monkeypatch: pytest.MonkeyPatch, given: str | None, port: int, name: str, url: str
) -> None:
    monkeypatch.setattr(roles, "local_hostname", lambda: "this.example.org")
    assert roles.find_public_url(given, port, name, system) == url


def test_a_public_url_that_was_set_holds_in_the_next_run(system: System) -> None:
    put(system, roles.SETTINGS, "[bstore]\npublic_url = https://farm.example.org\n")
    assert roles.find_public_url(None, 80, "bstore.example.org", system) == "https://farm.example.org/"
    with pytest.raises(InputError, match=r"\[bstore\] public_url: .* give the URL of the folder above it"):
        roles.find_public_url("https://farm.example.org/repo/", 80, "bstore.example.org", system)


# --- what was begun


def test_pending_units_are_kept_for_the_next_run(system: System) -> None:
    with lock_setup(system) as lock:
        assert not read_pending(lock)
        pending = {"nginx": "restart", "beanstalkd": "restart", "stunnel@reimzul": "reload"}
        write_pending(lock, pending)
    with lock_setup(system) as lock:
        assert read_pending(lock) == pending
        write_pending(lock, {})
    with lock_setup(system) as lock:
        assert not read_pending(lock)


def test_two_set_ups_at_once_are_refused(system: System) -> None:
    with lock_setup(system), pytest.raises(ReimzulError, match="another reimzul setup runs here"), lock_setup(system):
        pass


# --- mock's configurations


@pytest.mark.parametrize("url", ["https://git.example.org/mock_configs", "git@example.org:mock.git", "/srv/git/mock"])
def test_a_repository_is_cloned_as_the_user_who_pulls_it(tmp_path: Path, url: str) -> None:
    make, step = clone_steps(System(root=tmp_path, running=True), url)
    assert make.argv == ("install", "-d", "-o", "reimzul", "-g", "reimzul", "/srv/reimzul/mock_configs")
    assert step.argv[:4] == ("runuser", "-u", "reimzul", "--")
    assert step.argv[-3:] == ("--", url, "/srv/reimzul/mock_configs")


@pytest.mark.parametrize("url", ["--upload-pack=x", "ext::sh -c x", "mock_configs", "https://x y", ""])
def test_a_url_that_git_could_take_for_an_option_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="is not where a git repository is"):
        clone_steps(System(root=tmp_path, running=True), url)


def test_a_checkout_that_is_there_is_left_alone(tmp_path: Path) -> None:
    checkout, url = tmp_path / "srv/reimzul/mock_configs", "https://git.example.org/mock_configs"
    subprocess.run(["git", "init", "-q", checkout], check=True)
    assert clone_steps(System(root=tmp_path, running=True), url) == [], "of unknown origin"
    subprocess.run(["git", "-C", checkout, "remote", "add", "origin", url], check=True)
    assert clone_steps(System(root=tmp_path, running=True), url) == []
    with pytest.raises(InputError, match=f"were cloned from {url}; to have them from elsewhere: runuser -u reimzul "):
        clone_steps(System(root=tmp_path, running=True), "https://other.example.org/mock_configs")


# --- a host whose programs are Python's wheel


def test_units_user_and_folders_are_written_where_no_package_brings_them(
    tmp_path: Path, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin/reimzul")])
    files = {file.path: file for file in roles.plan_role("controller", system, RoleOptions()).files}
    first = list(files)[:2]
    assert first == ["/etc/sysusers.d/reimzul.conf", "/etc/tmpfiles.d/reimzul.conf"]  # files of that user come later
    assert files[first[0]].then == ("systemd-sysusers", first[0])
    shipped = {
        path.name for kind in ("service", "target", "timer") for path in (CONF.parent / "systemd").glob(f"*.{kind}")
    }
    assert {path.rpartition("/")[2] for path in files if re.match(r"/etc/systemd/system/[^/]+$", path)} == shipped
    unit = files["/etc/systemd/system/reimzul-notifier.service"].text
    assert f"\nExecStart={tmp_path}/bin/reimzul-notifier\n" in unit
    assert "/usr/local" not in unit


def test_every_template_and_unit_is_in_the_package() -> None:
    for folder in ("conf", "systemd"):
        for path in (CONF.parent / folder).iterdir():
            assert roles.read_template(path.name, folder) == path.read_text(encoding="utf-8")
