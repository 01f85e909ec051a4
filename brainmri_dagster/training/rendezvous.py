"""The rendezvous of a training's nodes: one address, no other listener, and each node learns why another ended. Imports no Dagster."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import socket
import struct
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

from brainmri_core.config.training import DistributedConfig
from brainmri_core.errors import ConfigError, ModelError
from brainmri_dagster.training.folder import all_reports, leave_report

BACKEND = "brainmri"
_LOOPBACK = "127.0.0.1"
_ADDRESS_OF_INTERFACE = 0x8915
_EXCHANGE_S = 30.0


class Rendezvous(StaticTCPRendezvous):
    """torchrun's static rendezvous, with a store that listens on one address instead of all."""

    def __init__(self, place: DistributedConfig, node: int) -> None:
        """Open the rendezvous (first node), or join it.

        Parameters
        ----------
        place : DistributedConfig
            Address and number of nodes.
        node : int
            Number of this machine; the first, 0, listens.

        Raises
        ------
        ConfigError
            If the address cannot be used, or this node does not fit what the first node expects.
        ModelError
            If no first node answers in time.
        """
        host, port = place.endpoint if place.nodes > 1 else (_LOOPBACK, 0)
        limit = timedelta(seconds=place.timeout_s)
        if node == 0:
            listener = _listener(host, port)
            port = listener.getsockname()[1]
            store = TCPStore(
                host,
                port,
                is_master=True,
                timeout=limit,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        else:
            _await(place)
            try:
                store = TCPStore(host, port, is_master=False, timeout=limit, wait_for_workers=False)
            except DistError:
                raise ConfigError(
                    f"What answers at train.distributed.rendezvous {host}:{port} is not a training; check the address."
                ) from None
        super().__init__(host, port, node, place.nodes, "brainmri", int(place.timeout_s))
        self.meeting: Store = store
        if place.nodes > 1:
            _keep_to_interface(host, port, node)
        self._enter(place)

    def get_backend(self) -> str:
        """Return the name under which torchrun knows this rendezvous."""
        return BACKEND

    def _enter(self, place: DistributedConfig) -> None:
        if self.rank == 0:
            self.meeting.set("nodes", str(place.nodes))
        expected = int(self.meeting.get("nodes"))
        if expected != place.nodes:
            raise ConfigError(
                f"train.distributed.nodes is {place.nodes} here and {expected} on the first node; set the same number on all."
            )
        if self.meeting.add(f"came/{self.rank}", 1) > 1:
            raise ConfigError(
                f"Another machine has already joined as node {self.rank}; give each its own --node, from 1 to "
                f"{place.nodes - 1}."
            )

    def await_all(self, place: DistributedConfig) -> None:
        """Wait until all nodes have joined.

        Raises
        ------
        ModelError
            If one has not joined in time.
        """
        until = time.monotonic() + place.timeout_s
        while missing := [n for n in range(place.nodes) if not self.meeting.check([f"came/{n}"])]:
            if self.meeting.check(["ended/0"]):
                return  # the first node has given up, and its report says why
            if time.monotonic() > until:
                raise ModelError(
                    f"Of {place.nodes} nodes (numbered from 0), {', '.join(map(str, missing))} did not join at "
                    f"{self.master_addr}:{self.master_port} within {place.timeout_s:g} s; start them, or raise "
                    "train.distributed.timeout_s."
                )
            time.sleep(0.1)

    def next_rendezvous(self) -> RendezvousInfo:
        """Return where this node's processes meet the others."""
        found = RendezvousStoreInfo(self.master_addr, self.master_port)
        return RendezvousInfo(PrefixStore("torchrun", self.meeting), self.rank, self.world_size, found)

    def exchange_reports(self, folder: Path) -> None:
        """Tell the other nodes why this one ended, and write their reports into a folder, and who is lost."""
        own = [{"kind": kind, **report} for kind, report in all_reports(folder)]
        others = [node for node in range(self.world_size) if node != self.rank]
        until = time.monotonic() + _EXCHANGE_S
        try:
            self.meeting.set(f"ended/{self.rank}", json.dumps(own))
            while not self.meeting.check([f"ended/{n}" for n in others]) and time.monotonic() < until:
                time.sleep(0.1)
            silent = [node for node in others if not self.meeting.check([f"ended/{node}"])]
            heard = [
                report
                for n in others
                if n not in silent
                for report in json.loads(self.meeting.get(f"ended/{n}"))
            ]
            self.meeting.add("heard", 1)
            while (
                self.rank == 0 and time.monotonic() < until
            ):  # the store lives in this process: let the others read first
                if self.meeting.add("heard", 0) >= self.world_size - len(silent):
                    break
                time.sleep(0.1)
        except DistError:
            silent, heard = [0], []
        for place, report in enumerate([*heard, *({"kind": "lost", "rank": node} for node in silent)]):
            leave_report(folder, report.pop("kind"), f"heard{place}", report)


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "is in use; choose another port, or end what uses it",
            errno.EADDRNOTAVAIL: "is not an address of this machine; use one of the first node's",
            errno.EACCES: "may not be listened on; choose a port of 1024 or higher",
        }
        reason = reasons.get(error.errno or 0, f"cannot be listened on: {error.strerror}")
        raise ConfigError(f"train.distributed.rendezvous {host}:{port} {reason}.") from None
    return listener


def _await(place: DistributedConfig) -> None:
    """Wait until the first node listens at the rendezvous; torch's own waiting fills the console with tracebacks."""
    until = time.monotonic() + place.timeout_s
    while True:
        try:
            socket.create_connection(place.endpoint, timeout=max(0.1, until - time.monotonic())).close()
        except OSError as error:
            if time.monotonic() > until:
                raise ModelError(
                    f"No training answered at train.distributed.rendezvous {place.rendezvous} within {place.timeout_s:g} s "
                    f"({error.strerror or error}); start the first node, or check the address."
                ) from None
            time.sleep(0.2)
        else:
            return


def _keep_to_interface(host: str, port: int, node: int) -> None:
    """Let the processes listen on the network interface of the rendezvous, and on no other of this machine."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    if node == 0:
        own = socket.gethostbyname(host)
    else:
        with socket.socket(type=socket.SOCK_DGRAM) as route:
            route.connect((host, port))
            own = route.getsockname()[0]
    name = _interface(own)
    if name is None:
        raise ConfigError(
            f"The network interface of {own} was not found; set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to its name."
        )
    os.environ["GLOO_SOCKET_IFNAME"] = name
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def _interface(own: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address."""
    wanted = ipaddress.ip_address(own)
    with socket.socket() as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), _ADDRESS_OF_INTERFACE, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no address
            address = ipaddress.ip_address(found[20:24])
            if address == wanted or (address.is_loopback and wanted.is_loopback):
                return name
    return None
