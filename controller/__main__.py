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
from controller.platform import Platform, open_directories
from controller.translate.types import Options, WaypointTemplate
from mesh.config.kube_api import ConfigError
from mesh.model.address import parse_ip
from mesh.runtime.clock import Clock, SystemClock
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
    parser = _Parser(
        prog="python -m controller",
        description="Ambit's controller, over a Kubernetes API or over directories of YAML.",
    )
    add = parser.add_argument
    add("--kubernetes", action="store_true", help="objects, tokens and authority are those of a cluster")
    add("--kubeconfig", type=Path, metavar="FILE", help="of the cluster; default: the pod's service account")
    add("--objects", type=Path, action="append", help="directory of objects; later ones win")
    add("--generated", type=Path, help="directory for what the controller writes")
    add("--ca-dir", type=Path, help="directory of the certificate authority")
    add("--xds-listen", type=_address, action="append", required=True, metavar="IP:PORT")
    add("--admin-listen", type=_address, default=("127.0.0.1", 15014), metavar="IP:PORT")
    add("--token-key", type=Path, help="public key (PEM) of the issuer of tokens")
    add("--trust-domain", default=os.environ.get("TRUST_DOMAIN", "cluster.local"))
    add("--cluster-id", default=os.environ.get("CLUSTER_ID", "Kubernetes"))
    add("--network", default=os.environ.get("NETWORK", ""))
    add("--cluster-domain", default="cluster.local")
    add("--root-namespace", default="istio-system")
    add(
        "--waypoint-image",
        default="",
        metavar="IMAGE",
        help="of waypoint pods; default: the controller's own",
    )
    add("--ztunnel-account", action="append", help=f"namespace/account of node proxies; default {ZTUNNEL}")
    add("--max-certificate-ttl", type=float, default=86_400.0, metavar="SECONDS")
    return parser


_OF_DIRECTORIES = ("objects", "generated", "ca_dir", "token_key")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Read the flags; those of directories and of a cluster exclude each other."""
    parser = _parser()
    args = parser.parse_args(arguments)
    args.kubernetes = args.kubernetes or args.kubeconfig is not None
    flags = {name: f"--{name.replace('_', '-')}" for name in _OF_DIRECTORIES}
    given = [flag for name, flag in flags.items() if getattr(args, name)]
    if args.kubernetes and given:
        parser.error(f"{', '.join(given)} is of directories and cannot go with --kubernetes")
    if not args.kubernetes and len(given) < len(flags):
        lacking = [flag for flag in flags.values() if flag not in given]
        parser.error(f"{', '.join(lacking)} is missing (or --kubernetes, for a cluster)")
    return args


async def _open(args: argparse.Namespace, trust_domain: str, clock: Clock) -> Platform:
    if args.kubernetes:
        # Its client takes half a second and 25 MB, which a lab need not spend.
        from controller.kubernetes.platform import open_cluster

        return await open_cluster(
            args.kubeconfig, namespace=args.root_namespace, trust_domain=trust_domain, clock=clock
        )
    return open_directories(
        tuple(args.objects),
        args.generated,
        args.ca_dir,
        args.token_key,
        trust_domain=trust_domain,
        clock=clock,
    )


def main() -> int:
    """Run one controller until it is told to end."""
    args = _parse(sys.argv[1:])
    configure(
        level=os.environ.get("LOG_LEVEL", "info"),
        log_format=LogFormat.JSON if os.environ.get("LOG_FORMAT") == "json" else LogFormat.TEXT,
    )
    settings = Settings(
        xds_listen=tuple(args.xds_listen),
        admin_listen=args.admin_listen,
        options=Options(
            trust_domain=args.trust_domain,
            cluster_id=args.cluster_id,
            network=args.network,
            cluster_domain=args.cluster_domain,
            root_namespace=args.root_namespace,
            waypoint=WaypointTemplate(
                image=args.waypoint_image,
                image_of=(os.environ.get("POD_NAMESPACE", ""), os.environ.get("POD_NAME", "")),
            ),
        ),
        ztunnels=frozenset(args.ztunnel_account or (ZTUNNEL,)),
        max_ttl_s=args.max_certificate_ttl,
    )

    async def run() -> None:
        clock = SystemClock()
        platform = await _open(args, settings.options.trust_domain, clock)
        try:
            await App(settings, platform, clock).run()
        finally:
            await platform.close()

    try:
        asyncio.run(run())
    except (StoreError, ConfigError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return EX_DATA
    except (StartError, OSError) as error:
        print(f"controller: {error}", file=sys.stderr)
        return EX_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
