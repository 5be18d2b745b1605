# SPDX-License-Identifier: Apache-2.0
"""`python -m controller`: reads the flags, runs the app, answers with an exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from controller.app import App, Settings, StartError
from controller.ca.authorise import ZTUNNEL
from controller.ca.store import StoreError
from controller.translate.types import Options
from mesh.model.address import parse_ip
from mesh.telemetry.logging import LogFormat, configure

EX_ERROR = 1
EX_USAGE = 64
EX_DATA = 65


def _address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    try:
        parse_ip(host.strip("[]"))
        number = int(port)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is not IP:PORT") from error
    if not 0 <= number < 65_536:
        raise argparse.ArgumentTypeError(f"{value!r}: no such port")
    return host.strip("[]"), number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"controller: {message}", file=sys.stderr)
        sys.exit(EX_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m controller", description="Ambit's controller over directories of YAML.")
    add = parser.add_argument
    add("--objects", type=Path, action="append", required=True, help="directory of objects; later ones win")
    add("--generated", type=Path, required=True, help="directory for what the controller writes")
    add("--ca-dir", type=Path, required=True, help="directory of the certificate authority")
    add("--xds-listen", type=_address, action="append", required=True, metavar="IP:PORT")
    add("--admin-listen", type=_address, default=("127.0.0.1", 15014), metavar="IP:PORT")
    add("--token-key", type=Path, required=True, help="public key (PEM) of the issuer of tokens")
    add("--trust-domain", default=os.environ.get("TRUST_DOMAIN", "cluster.local"))
    add("--cluster-id", default=os.environ.get("CLUSTER_ID", "Kubernetes"))
    add("--network", default=os.environ.get("NETWORK", ""))
    add("--cluster-domain", default="cluster.local")
    add("--root-namespace", default="istio-system")
    add("--ztunnel-account", action="append", help=f"namespace/account of node proxies; default {ZTUNNEL}")
    add("--max-certificate-ttl", type=float, default=86_400.0, metavar="SECONDS")
    return parser


def main() -> int:
    """Run one controller until it is told to end."""
    args = _parser().parse_args()
    configure(
        level=os.environ.get("LOG_LEVEL", "info"),
        log_format=LogFormat.JSON if os.environ.get("LOG_FORMAT") == "json" else LogFormat.TEXT,
    )
    settings = Settings(
        objects=tuple(args.objects),
        generated=args.generated,
        ca_dir=args.ca_dir,
        xds_listen=tuple(args.xds_listen),
        admin_listen=args.admin_listen,
        token_key=args.token_key,
        options=Options(
            trust_domain=args.trust_domain,
            cluster_id=args.cluster_id,
            network=args.network,
            cluster_domain=args.cluster_domain,
            root_namespace=args.root_namespace,
        ),
        ztunnels=frozenset(args.ztunnel_account or (ZTUNNEL,)),
        max_ttl_s=args.max_certificate_ttl,
    )

    async def run() -> None:
        await App(settings).run()

    try:
        asyncio.run(run())
    except StoreError as error:
        print(f"controller: {error}", file=sys.stderr)
        return EX_DATA
    except (StartError, OSError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return EX_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
