# SPDX-License-Identifier: Apache-2.0
"""The ways of this host to the others, and what it offers to them: where one is broken, which part of it is.

A way is: our stunnel, the network, the far stunnel, our key, the service behind it. The service is spoken to through
all of it; only where it does not answer the parts are looked at, one after the other.
"""

from __future__ import annotations

from reimzul.admin.doctor.check import Check, Result, fail, ok
from reimzul.admin.doctor.handshake import STUNNEL, fault, readable, shown, start, unreachable
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host
from reimzul.admin.doctor.services import BEANSTALKD, INCOMING, RSYNCD, STORE, Service, Wrong, services
from reimzul.core.config import LOCAL
from reimzul.core.errors import BrokerUnavailable

#: What a role cannot do without.
NEEDED = {CONTROLLER: (BEANSTALKD, STORE), BSTORE: (BEANSTALKD,), BUILDER: (BEANSTALKD, INCOMING, RSYNCD, STORE)}


def used(host: Host) -> dict[str, Service]:
    """The services this host uses: those its roles need, and those it has a way to."""
    needed = {name for role in host.roles for name in NEEDED[role]}
    return {
        name: service
        for name, service in services(host.settings).items()
        if name in needed or host.tunnels.way_at(*service.address)
    }


def checks(host: Host) -> list[Check]:
    """A check for each way, and one for each offer."""
    ways = [Check(name=f"link.{name}", look=Link(host, service)) for name, service in used(host).items()]
    offers = [Check(name=f"offer.{name}", look=Offer(host, name)) for name in host.tunnels.offers]
    return ways + offers


class Link:
    """A look at one way of ours."""

    def __init__(self, host: Host, service: Service) -> None:
        self.host, self.service = host, service
        self.section = host.tunnels.way_at(*service.address)

    def __call__(self) -> Result:
        """Speak to the service; where that fails, find out which part of the way it is."""
        nothing = self._near()
        if nothing is not None:
            return nothing
        end = shown(self.section.connect if self.section else self.service.address)
        try:
            return ok(f"{end}: {self.service.speak(self.service.address)}")
        except Wrong as wrong:
            return fail(f"{end}: {wrong}", wrong.remedy)
        except (OSError, BrokerUnavailable) as error:
            return self._broken(error)

    def _near(self) -> Result | None:
        """What keeps us from our own end of the way."""
        address, service = self.service.address, self.service
        why = unreachable(address)
        if why is None:
            return None
        if self.section is not None:
            return fail(f"nothing listens on {shown(address)}: stunnel does not run on this host", STUNNEL)
        if address[0] not in LOCAL:
            return fail(f"{shown(address)}: {why}", f"is {service.setting} right, and that host up?")
        if self.host.has(service.offerer):
            return fail(f"nothing listens on {shown(address)}: {service.program} does not run", start(service.program))
        words = f"nothing listens on {shown(address)}, and no section of {self.host.tunnels.path} would"
        more = " --add-bstore NAME" if self.host.roles[0] == CONTROLLER and service.name == STORE else ""
        return fail(words, f"reimzul setup {self.host.roles[0]}{more}, or mend {service.setting}")

    def _broken(self, error: Exception) -> Result:
        """Which part it is that does not do its work."""
        if self.section is None:
            return fail(f"{shown(self.service.address)}: {reason(error)}", start(self.service.program))
        far = self.section.connect
        found = fault(self.host, self.section, far, self.service, f"on {far[0]}: ")
        words = f"{shown(far)} takes the key, but not from the stunnel that runs here: has it read its files since?"
        return found or fail(words, STUNNEL)


class Offer:
    """A look at what the others reach through our stunnel."""

    def __init__(self, host: Host, name: str) -> None:
        self.host, self.section = host, host.tunnels.offers[name]
        self.service = services(host.settings)[name]

    def __call__(self) -> Result:
        """Speak to the service behind stunnel, then make a handshake with stunnel itself."""
        accept = (self.section.accept[0] or "127.0.0.1", self.section.accept[1])
        if unreachable(accept) is not None:
            return fail(f"nothing listens on port {accept[1]}: stunnel does not run on this host", STUNNEL)
        try:
            said = self.service.speak(self.section.connect)
        except Wrong as wrong:
            return fail(str(wrong), wrong.remedy)
        except (OSError, BrokerUnavailable) as error:
            return fail(f"{shown(self.section.connect)}: {reason(error)}", start(self.service.program))
        if readable(self.section.secrets) is None:
            return ok(f"port {accept[1]}: {said}; run it as root to see whether keys are taken")
        found = fault(self.host, self.section, accept, self.service, "")
        return found or ok(f"port {accept[1]} takes keys; {said}")


def reason(error: Exception) -> str:
    """Why a service could not be spoken to."""
    if isinstance(error, BrokerUnavailable):
        return str(error)
    return (getattr(error, "strerror", "") or str(error) or "no answer").lower()
