# SPDX-License-Identifier: Apache-2.0
"""What a person types and sees, from bare machines to an installed package and from a mail to its cause: transcripts.

They are written to `.farm/transcripts-<run>/`.
"""

from __future__ import annotations

import re

from tests import srpms
from tests.hosts.farm import ARCH, TARGET, Farm, Tell
from tests.hosts.machine import DOMAIN
from tests.waiting import until

_MAIL_HOST = f"mail.{DOMAIN}"
#: A mail server with one mailbox.
_MAILBOX = """\
import asyncore, smtpd

class Mailbox(smtpd.SMTPServer):
    def process_message(self, peer, sender, recipients, data, **options):
        with open("/var/mail/root", "ab") as box:
            box.write(data + b"\\n")

Mailbox(("0.0.0.0", 25), None)
asyncore.loop()
"""
_AS = f"-d .el9 -a {ARCH} -t {TARGET}"


def test_laptop(farm: Farm, tell: Tell) -> None:
    """A laptop's dnf installs the package with what `reimzul targets show` prints, pasted into a file."""
    first = min(farm.legs_of("some-1.0-1"), key=lambda leg: str(leg["timestamp"]))
    farm.published(first["build_id"])
    farm.type("controller", "reimzul builds", part="laptop")
    shown = farm.type("controller", f"reimzul targets show {TARGET}", part="laptop")
    repo = shown.partition(f"# for dnf: /etc/yum.repos.d/{TARGET}.repo\n")[2].strip()
    assert f"baseurl=http://bstore.{DOMAIN}/repo/{TARGET}.{ARCH}/" in repo, shown
    farm["customer"].run("apt-get install dnf", timeout=600)
    farm["customer"].run("mkdir -p /etc/yum.repos.d")
    farm.type("customer", f"cat >/etc/yum.repos.d/{TARGET}.repo <<'.'\n{repo}\n.", part="laptop")
    farm.type("customer", "dnf install some", ("Is this ok [y/N]:", "y\n"), part="laptop")
    assert farm.type("customer", "cat /usr/share/some/greeting", part="laptop") == "some\n"
    farm["customer"].run(f"rm /etc/yum.repos.d/{TARGET}.repo")  # the next one has a repository of its own
    path = farm.write_transcript("From four bare machines to a package that a laptop's dnf installs", "", "laptop")
    tell(f"  {path}")


def test_mail(farm: Farm, tell: Tell) -> None:
    """The mail about a failed build leads by its own commands to the cause; the repaired package is published."""
    broken = srpms.compiled("greet").replace("return 0", "return EXIT_SUCCESS")
    repaired = broken.replace("Release: 1", "Release: 2").replace("#include", "#include <stdlib.h>\n#include")
    for spec in (broken, repaired):
        srpms.make_srpm(farm.folder / "srpms", "greet", spec)
    farm.controller.run("cp /mnt/sources/greet-1.0-*.src.rpm reimzul/")
    farm["customer"].run(f"echo {farm['customer'].address} {_MAIL_HOST} >>/etc/hosts")
    farm.controller.run(f"echo {farm['customer'].address} {_MAIL_HOST} >>/etc/hosts")
    farm["customer"].write("/srv/mailbox.py", _MAILBOX)
    farm["customer"].run("apt-get install python3; systemd-run --unit=mailbox python3 -W ignore /srv/mailbox.py")
    farm["customer"].wait_active("mailbox")
    mails = f"--set mail.notifications=true --set mail.smtp_host={_MAIL_HOST} --set mail.to_submitter=true"
    farm.type("controller", f"reimzul setup controller {mails} --set mail.submitter_domain={DOMAIN}", part="mail")
    said = farm.type("controller", f"reimzul-submit -s greet-1.0-1.src.rpm {_AS}", part="mail")
    until(lambda: "\nSubject: [reimzul] Failed: greet" in _read_mails(farm), 300, "the mail has arrived")
    mail = farm.type("customer", "sed '/^#### Reimzul/,$d' /var/mail/root", part="mail")
    commands = re.findall(r"^(?:Why it failed|Build it again): +(reimzul .+)$", mail, re.MULTILINE)
    assert len(commands) >= 2, mail
    explained = farm.type("controller", commands[0], part="mail")
    assert "EXIT_SUCCESS" in explained, explained
    farm.type("controller", f"reimzul log {said.split()[0]} | tail -12", part="mail")
    done = farm.type("controller", f"reimzul-submit -s greet-1.0-2.src.rpm {_AS} --wait", part="mail")
    assert "published" in done, done
    farm.type("controller", "reimzul builds --srpm 'greet*'", part="mail")
    # nobody reads the mails of later proofs
    farm.controller.run("reimzul setup controller --set mail.notifications=false")
    farm.wait_idle()
    farm["customer"].run("systemctl stop mailbox")
    path = farm.write_transcript("From the mail about a failed build to its cause", "mail")
    tell(f"  {path}")


def _read_mails(farm: Farm) -> str:
    return farm["customer"].run("cat /var/mail/root", check=False).out
