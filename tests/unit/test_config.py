# SPDX-License-Identifier: Apache-2.0
"""`reimzul.ini`: its defaults, its faults all at once and by name, and the sample that is made from the same table."""

from __future__ import annotations

import errno
import grp
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import config
from reimzul.core.cli import local_hostname
from reimzul.core.config import load_file, parse_settings, sample_text
from reimzul.core.errors import ConfigError
from reimzul.core.settings import Settings, all_sections, settings_of

SHIPPED_SAMPLE = Path(__file__).parents[2] / "conf" / "reimzul.ini.sample"


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse_settings(text, "reimzul.ini")
    lines = str(refused.value).splitlines()
    assert all(line.startswith("reimzul.ini: ") for line in lines)
    return [line[len("reimzul.ini: ") :] for line in lines]


# --- defaults and the sample


def test_an_empty_file_holds_the_defaults() -> None:
    assert parse_settings("", "reimzul.ini") == Settings()


def test_the_defaults_are_the_originals() -> None:
    settings = Settings()
    assert (settings.beanstalkd.host, settings.beanstalkd.port) == ("localhost", 11300)
    assert settings.incoming.folder == Path("/srv/reimzul/incoming")
    assert settings.logs.logfile == Path("/var/log/reimzul/reimzul.log")
    assert settings.bstore.base_url == "http://localhost:11081/bstore/repo/"
    assert Path("/etc/reimzul/reimzul.ini") == config.DEFAULT_FILE


def test_the_shipped_sample_is_made_from_the_table() -> None:
    assert SHIPPED_SAMPLE.read_text(encoding="utf-8") == sample_text(), "make it anew: see sample() in core/config.py"


def test_the_sample_reads_back_as_the_defaults() -> None:
    assert parse_settings(sample_text(), "sample") == Settings()


def test_the_sample_has_every_setting_with_its_meaning() -> None:
    lines = sample_text().splitlines()
    for name, section in all_sections().items():
        start = lines.index(f"[{name}]")
        for row in settings_of(section):
            at = next(n for n in range(start, len(lines)) if lines[n].startswith(f"{row.name} ="))
            assert lines[at - 1].startswith("# ")
            assert row.metadata["meaning"].splitlines()[-1] in lines[at - 1]


# --- what it takes


@pytest.mark.parametrize(
    ("word", "truth"),
    [("true", True), ("True", True), ("yes", True), ("ON", True), ("1", True)]
    + [("false", False), ("False", False), ("no", False), ("off", False), ("0", False)],
)
def test_a_boolean_is_one(word: str, truth: bool) -> None:
    assert parse_settings(f"[mqtt]\ntls_insecure = {word}\n", "here").mqtt.tls_insecure is truth


@pytest.mark.parametrize("word", ["", "maybe", "2", "none", "tru"])
def test_what_is_no_boolean_is_refused(word: str) -> None:
    assert faults(f"[mqtt]\ntls_insecure = {word}\n") == [f"[mqtt] tls_insecure: {word!r} is not true or false"]


@pytest.mark.parametrize(
    ("section", "key", "text", "value"),
    [
        ("beanstalkd", "host", "10.0.0.1", "10.0.0.1"),
        ("beanstalkd", "port", " 13100 ", 13100),
        ("bstore", "base_url", "https://store/bstore/repo", "https://store/bstore/repo/"),
        ("worker", "mock", "/opt/my mock/mock", "/opt/my mock/mock"),
        ("worker", "fqdn", "builder-1.example.org", "builder-1.example.org"),
        ("worker", "machine", "", ""),
        ("worker", "machine", "armv7l", "armv7l"),
        ("worker", "presence", "60", 60),
        ("worker", "rsync_arguments", "--bwlimit=20m '--exclude=a b'", ("--bwlimit=20m", "--exclude=a b")),
        ("worker", "rsync_arguments", "$(id) ; rm 100%", ("$(id)", ";", "rm", "100%")),
        ("history", "url", "mongodb://localhost:27017/", "mongodb://localhost:27017/"),
        ("farm", "arches", "/etc/reimzul/arches.yml", Path("/etc/reimzul/arches.yml")),
        ("farm", "arches", "", None),
        ("mqtt", "topic", "centos/reimzul", "centos/reimzul"),
    ],
)
@pytest.mark.parametrize("sign", [" = ", ":", "="])
def test_a_setting_is_read_as_what_it_is(section: str, key: str, text: str, value: Any, sign: str) -> None:
    assert getattr(getattr(parse_settings(f"[{section}]\n{key}{sign}{text}\n", "here"), section), key) == value


@pytest.mark.parametrize(
    "line",
    [
        "[beanstalkd]\nport = 0",
        "[beanstalkd]\nport = 65536",
        "[beanstalkd]\nport = 1e3",
        "[beanstalkd]\nport = ٣",
        "[beanstalkd]\nport = " + "9" * 5000,
        "[beanstalkd]\nhost =",
        "[incoming]\nfolder = incoming",
        "[incoming]\nurl = ftp://localhost/incoming/",
        "[incoming]\nurl = http:///incoming/",
        "[incoming]\nurl = http://[::1/incoming/",
        "[incoming]\nurl = http://localhost/incoming/?a=b",
        "[bstore]\nbase_url = http://localhost/bstore/",
        "[bstore]\nupload_url = localhost:reimzul-bstore/",
        "[worker]\nmock = ./mock",
        "[worker]\nmock = mock --verbose",
        "[worker]\nmock =",
        "[worker]\nrsync_arguments = 'open",
        "[worker]\ntries = 0",
        "[worker]\ntries = 21",
        "[worker]\nfqdn = my builder 1",
        "[worker]\nmachine = x86-64",
        "[worker]\npresence = 61",
        "[history]\nurl = sqlite://history.sqlite",
        "[history]\nurl = postgres://localhost/",
        "[mqtt]\ntopic = builds/#",
        "[mqtt]\ntopic = /builds",
    ],
)
def test_what_a_setting_cannot_be_is_refused_by_its_name(line: str) -> None:
    section, key = line.split("\n")
    (fault,) = faults(line + "\n")
    assert fault.startswith(f"{section} {key.split(' ')[0]}: ")


# --- faults


def test_all_faults_are_told_at_once() -> None:
    said = faults(
        "[beanstalkd]\nport = x\nhots = a\n[beanstalk]\nport = 1\n[mqtt]\ntls_insecure = maybe\ntls_cert = /c\n"
    )
    assert said == [
        "[beanstalk] is not a section; is [beanstalkd] meant?",
        "[beanstalkd] port: 'x' is not a whole number from 1 to 65535",
        "[beanstalkd] hots is not a setting; is host meant?",
        "[mqtt] tls_insecure: 'maybe' is not true or false",
        "[mqtt] set both tls_cert and tls_key, or none",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[mqtt]\ntls_insecur = no\n", "[mqtt] tls_insecur is not a setting; is tls_insecure meant?"),
        ("[worker]\nlogfile = /x\n", "[worker] logfile is not a setting; [logs] has one of that name"),
        ("[worker]\nquux = 1\n", "[worker] quux is not a setting"),
        ("[quux]\n", "[quux] is not a section"),
        ("[submit]\n", "[submit] is not a section"),  # the brackets make nothing alike
        ("[Logs]\n", "[Logs] is not a section; is [logs] meant?"),
        ("[mqtt]\nnotifications = yes\n", "[mqtt] ca_cert: required if notifications is true"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(text: str, fault: str) -> None:
    assert faults(text) == [fault]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("secret: x\n", ["line 1 is before the first section, as [worker]"]),
        ("[worker]\nsecret\n\nsecret\n", [f"line {n} is neither a section nor a setting" for n in (2, 4)]),
        ("[worker]\n[logs]\n[worker]\n", ["line 3: [worker] is there already"]),
        ("[worker]\nmock = secret\nmock = secret\n", ["line 3: [worker] mock is set already"]),
    ],
)
def test_a_file_of_another_form_is_described_without_its_text(text: str, found: list[str]) -> None:
    assert faults(text) == found


def test_who_may_read_the_settings_is_said_to_those_who_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "reimzul.ini"
    file.touch()
    group = grp.getgrgid(file.stat().st_gid).gr_name

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    for mode, hint in ((0o640, f": run it as root, or as a member of group {group}"), (0o600, ": run it as root")):
        file.chmod(mode)
        with pytest.raises(ConfigError) as refused:
            load_file(file)
        assert str(refused.value) == f"{file}: permission denied{hint}"
    with pytest.raises(ConfigError, match=r"elsewhere: permission denied$"):
        load_file(tmp_path / "elsewhere")


MAIL_CLEAR = "[mail] starttls: must be true: the password would be sent in the clear"
MAIL_PAIR = "[mail] set both login and password_file, or none"
MAIL_DOMAIN = "[mail] submitter_domain: required if to_submitter is true"
IRC_CLEAR = "[irc] tls: must be true: the password would be sent in the clear"
IRC_PASSWORD = "[irc] password_file: required if identify is sasl or nickserv, and only then"
IRC_CERTIFICATE = "[irc] set both mqtt_cert and mqtt_key, or none"
MQTT_CERTIFICATE = "[mqtt] set both tls_cert and tls_key, or none"
MQTT_AUTHORITY = "[mqtt] ca_cert: required if notifications is true"


def section(name: str, *lines: str) -> str:
    return "\n".join([f"[{name}]", *lines, ""])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (section("mail", "smtp_host = mx.example.org", "login = me", "password_file = /p"), MAIL_CLEAR),
        (section("mail", "smtp_host = localhost.example.org", "login = me", "password_file = /p"), MAIL_CLEAR),
        (section("mail", "login = me"), MAIL_PAIR),
        (section("mail", "password_file = /p"), MAIL_PAIR),
        (section("mail", "to_submitter = true"), MAIL_DOMAIN),
        (section("irc", "server = irc.example.org", "tls = no", "identify = sasl", "password_file = /p"), IRC_CLEAR),
        (section("irc", "server = localhost6", "tls = no", "identify = nickserv", "password_file = /p"), IRC_CLEAR),
        (section("irc", "identify = sasl"), IRC_PASSWORD),
        (section("irc", "identify = nickserv"), IRC_PASSWORD),
        (section("irc", "password_file = /p"), IRC_PASSWORD),
        (section("irc", "mqtt_cert = /c"), IRC_CERTIFICATE),
        (section("irc", "mqtt_key = /k"), IRC_CERTIFICATE),
        (section("mqtt", "tls_cert = /c"), MQTT_CERTIFICATE),
        (section("mqtt", "tls_key = /k"), MQTT_CERTIFICATE),
        (section("mqtt", "notifications = true"), MQTT_AUTHORITY),
    ],
)
def test_settings_that_contradict_each_other_are_refused(text: str, fault: str) -> None:
    assert faults(text) == [fault]


@pytest.mark.parametrize(
    "text",
    [
        section("mail", "smtp_host = mx.example.org"),
        section("mail", "smtp_host = mx.example.org", "starttls = true", "login = me", "password_file = /p"),
        *(section("mail", f"smtp_host = {host}", "login = me", "password_file = /p") for host in config.LOCAL),
        section("mail", "to_submitter = true", "submitter_domain = example.org"),
        section("irc", "server = irc.example.org", "tls = no"),
        section("irc", "server = irc.example.org", "identify = sasl", "password_file = /p"),
        *(
            section("irc", f"server = {host}", "tls = no", "identify = nickserv", "password_file = /p")
            for host in config.LOCAL
        ),
        section("irc", "mqtt_cert = /c", "mqtt_key = /k"),
        section("mqtt", "tls_cert = /c", "tls_key = /k"),
        section("mqtt", "notifications = true", "ca_cert = /a"),
    ],
)
def test_settings_that_go_together_are_taken(text: str) -> None:
    assert parse_settings(text, "here") != Settings()


def test_only_names_of_the_host_itself_keep_a_password_off_the_network() -> None:
    assert set(config.LOCAL) == {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "text",
    ["port = 1\n", "[mqtt\n", "[mqtt]\nno value\n", "[mqtt]\n[mqtt]\n", "[mqtt]\nport = 1\nport = 2\n", "\0"],
)
def test_what_is_no_ini_file_is_told_in_one_line(text: str) -> None:
    assert len(faults(text)) == 1


@given(st.text(alphabet="[]=: \n#;%\0abhostport19é", max_size=60))
def test_any_text_is_settings_or_refused(text: str) -> None:
    try:
        parse_settings(text, "here")
    except ConfigError as error:
        assert str(error)  # noqa: PT017  any input is either taken or refused


# --- an original's file


def test_an_originals_file_keeps_its_words() -> None:
    settings = parse_settings(
        "[bstore]\nbase_url = http://localhost:11081/bstore/repo\n"
        "[scm]\ngit_url = https://git.example.org\n"
        "[logs]\nlogfile = /var/log/reimzul/other.log\n"
        "[mail]\nnotifications = True\nmail_from = reimzul@example.org\n"
        "[mail_rcpts]\nx86_64 = a@example.org,b@example.org\narmhfp = c@example.org\n"
        "[mqtt]\nnotifications = True\nhost = mqtt.example.org\nport = 8883\nca_cert = /etc/reimzul/ca.crt\n"
        "tls_cert = /etc/reimzul/c.crt\ntls_key = /etc/reimzul/c.key\ntls_insecure = False\ntopic = reimzul\n",
        "reimzul.ini",
    )
    assert settings.bstore.base_url == "http://localhost:11081/bstore/repo/"
    assert settings.logs.logfile == Path("/var/log/reimzul/other.log")
    assert settings.mqtt.notifications is True
    assert settings.mqtt.tls_insecure is False
    assert settings.mail.notifications is True
    assert settings.mail.mail_from == "reimzul@example.org"
    assert settings.mail_rcpts.arches["x86_64"] == ("a@example.org", "b@example.org")


# --- which file


def ini(folder: Path, host: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{host}.ini"
    path.write_text(f"[beanstalkd]\nhost = {host}\n")
    return path


def test_the_file_given_comes_before_the_variable_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", ini(tmp_path, "usual"))
    monkeypatch.delenv(config.FILE_VARIABLE, raising=False)
    assert load_file().beanstalkd.host == "usual"
    monkeypatch.setenv(config.FILE_VARIABLE, str(ini(tmp_path, "variable")))
    assert load_file().beanstalkd.host == "variable"
    assert load_file(ini(tmp_path, "given")).beanstalkd.host == "given"


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.ini")
    monkeypatch.delenv(config.FILE_VARIABLE, raising=False)
    assert load_file() == Settings()


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.ini: no such file"):
        load_file(tmp_path / "none.ini")


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "latin.ini"
    path.write_bytes("[logs]\n# é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        load_file(path)


# --- the name of the host, where the file has none


@pytest.mark.parametrize("name", ["my builder 1", "-x", "a/b"])
def test_a_hosts_name_that_cannot_travel_is_a_fault_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("REIMZUL_FQDN", name)
    with pytest.raises(ConfigError, match=r"^the name of this host: '.*' is not a host name \(set another in \$REIM"):
        local_hostname()
    monkeypatch.setenv("REIMZUL_FQDN", "builder-1.example.org")
    assert local_hostname() == "builder-1.example.org"


# --- settings of earlier versions


@pytest.mark.parametrize(
    ("section", "key", "why"),
    [
        ("farm", "original_workers", "workers of the original are no longer supported"),
        ("farm", "refused", "refused jobs stay buried in beanstalkd"),
        ("notifier", "quarantine_ratio", "quarantine counts faults in a row"),
        ("notifier", "quarantine_hours", "quarantine counts faults in a row"),
    ],
)
@pytest.mark.parametrize("value", ["true", "/var/log", "3"])
def test_a_retired_setting_is_ignored_with_one_warning(
    section: str, key: str, why: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert parse_settings(f"[{section}]\n{key} = {value}\n", "reimzul.ini") == Settings()
    assert [record.getMessage() for record in caplog.records] == [
        f"[{section}] {key} is ignored, and an error from 0.3 on: {why}"
    ]
    assert f"\n{key} =" not in sample_text()
