"""`build-agent images`: bake images, look at them, take them out of use, clear away what bakes have left."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli import argument
from agent.cli.context import Context

if TYPE_CHECKING:
    from agent.fleet.provider import Provider
    from agent.fleet.sweep import Swept
    from agent.model.image import Image, ImageReport
    from agent.model.image_diff import Difference

PROVIDERS = ("local", "ec2")
_USERS_SHOWN = 10
_provider = click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    help="Who has the machines, if not the setting fleet_provider.",
)


@click.group()
def images() -> None:
    """Bake, compare and retire machine images."""


@images.command("list")
@click.option("--all", "-a", "with_all", is_flag=True, help="Those that failed or were retired, too.")
@argument.as_json
@click.pass_obj
def list_(obj: Context, *, with_all: bool, as_json: bool) -> None:
    """List images, the newest first."""
    from agent.cli import record
    from agent.model.image import ImageState
    from agent.store import images as store_images

    found = store_images.list_images(obj.store)
    left_out = () if with_all else (ImageState.FAILED, ImageState.RETIRED)
    shown = [it for it in found if it.state not in left_out]
    if as_json:
        record.echo(shown)
        return
    if shown:
        _print_list(shown)
    if not found:
        click.echo("no image yet: build-agent images bake", err=True)
    elif more := len(found) - len(shown):
        click.echo(f"{more} more failed or retired; --all shows them, too", err=True)


@images.command()
@argument.image
@click.option(
    "--report",
    type=click.Choice(("junit", "json")),
    help="Print the report of the newest checks instead, as JUnit XML or JSON.",
)
@argument.as_json
@click.pass_obj
def show(obj: Context, *, image: str, report: str | None, as_json: bool) -> None:
    """Show an image: who uses it, what it was made from, what its checks said."""
    from agent.cli import record
    from agent.errors import NotFound
    from agent.store import images as store_images
    from agent.store import usage

    found = obj.find_image(image)
    reports = store_images.list_reports(obj.store, found.id)
    with obj.store.read() as connection:
        users = usage.of(connection, found.id)
    if report is not None:
        if not reports:
            raise NotFound(f"image {found.version} has no report: it did not come to its checks")
        newest = reports[-1]
        if report == "junit":
            click.echo(newest.junit)
        else:
            record.echo(newest.report)
    elif as_json:
        more = {"reports": [record.plain(it) for it in reports], "used_by": users}
        record.echo({**record.plain(found), **more})
    else:
        _print_image(found, reports, users)


@images.command()
@click.argument("before", metavar="IMAGE", shell_complete=argument.complete_image)
@click.argument("after", metavar="IMAGE", shell_complete=argument.complete_image)
@argument.as_json
@click.pass_obj
def diff(obj: Context, *, before: str, after: str, as_json: bool) -> None:
    """Say what differs between two images: sources, pins, tools, packages, checks."""
    from agent.cli import record
    from agent.model.image_diff import compare
    from agent.store import images as store_images

    old, new = obj.find_image(before), obj.find_image(after)
    differences = compare(
        old,
        store_images.list_reports(obj.store, old.id),
        new,
        store_images.list_reports(obj.store, new.id),
    )
    if as_json:
        record.echo(differences)
    elif differences:
        _print_differences(old, new, differences)
    else:
        click.echo(f"nothing differs between {old.version} and {new.version}", err=True)


@images.command()
@argument.image
@click.option("--why", metavar="TEXT", help="Why, for the record.")
@click.option("--delete", is_flag=True, help="Delete it at its provider, too: no way back.")
@argument.as_json
@click.pass_obj
def retire(obj: Context, *, image: str, why: str | None, delete: bool, as_json: bool) -> None:
    """Take an image out of use: no server is started from it any more."""
    from agent.cli import record
    from agent.fleet import providers
    from agent.fleet import retire as fleet_retire

    found = obj.find_image(image)
    provider = _make(obj, found.provider) if delete else None
    retired = fleet_retire.retire(obj.store, found, by=obj.actor, reason=why)
    if provider is not None:
        group_of = functools.partial(providers.group_of, obj.settings)
        retired = fleet_retire.delete(obj.store, retired, provider, group_of, by=obj.actor)
    if as_json:
        record.echo(retired)
        return
    click.echo(f"image {retired.version} is retired{' and deleted' if delete else ''}")


@images.command()
@click.argument("bake", required=False)
@_provider
@argument.as_json
@click.pass_obj
def sweep(obj: Context, *, bake: str | None, provider: str | None, as_json: bool) -> None:
    """Remove what bakes have left at the provider: of BAKE, or of each that nobody works at.

    A bake that is swept can't be resumed. Verified images stay, and so does what this database knows nothing of.
    """
    from agent.cli import record
    from agent.fleet.sweep import Sweep
    from agent.store import bakes

    only = bakes.find(obj.store, bake) if bake else None
    work = Sweep(
        store=obj.store,
        provider=_make(obj, only.provider if only else provider),
        owner_tag=obj.settings.fleet_owner,
        by=obj.actor,
        lease_s=obj.settings.lease_s,
        limit_s=600.0,
        tell=lambda text: None if as_json else click.echo(text),
    )
    swept = work.one(only) if only else work.all()
    if as_json:
        record.echo(swept)
        return
    _print_swept(swept)


@images.command()
@_provider
@click.option(
    "--profile",
    type=click.Choice(argument.PROFILES),
    default="full",
    show_default=True,
    help="What is set up on it.",
)
@click.option(
    "--from",
    "base",
    metavar="IMAGE",
    default="",
    help="What to start from: an image, or a base as debian-12.",
)
@click.option("--version", metavar="NAME", help="Its name; without it the day and a number: 2026-11-26.1.")
@argument.scripts
@argument.deb
@click.option("--keep", is_flag=True, help="Leave the server of a bake that fails, for a look at it.")
@click.option("--resume", metavar="BAKE", help="Go on with a bake that was interrupted or killed.")
@click.option("--output", "-o", "has_output", is_flag=True, help="Print all that the servers print.")
@argument.as_json
@click.pass_obj
def bake(obj: Context, /, *, as_json: bool, has_output: bool, **asked: Any) -> None:
    """Make an image, and prove it: set up a server, check it, start a fresh one from the image, build there.

    Ctrl-C ends the bake and removes what it made; with --keep it can be resumed, as after a kill.
    """
    from agent.cli import baking, record

    image = baking.bake(obj, baking.Asked(**asked), has_output=has_output, is_quiet=as_json)
    if as_json:
        record.echo(image)


def _make(obj: Context, name: str | None) -> Provider:
    from agent.fleet import providers

    return providers.make(obj.settings, name)


def _print_list(shown: Sequence[Image]) -> None:
    from agent.cli import table
    from agent.model import wording

    columns = [
        table.Column("version"),
        table.Column("state", is_state=True),
        table.Column("profile"),
        table.Column("provider"),
        table.Column("id"),
        table.Column("begun"),
        table.Column("reason", is_elastic=True),
    ]
    rows = [
        [
            it.version,
            it.state,
            it.profile,
            it.provider,
            it.id,
            wording.local(it.created_at),
            it.reason or "-",
        ]
        for it in shown
    ]
    table.show(columns, rows)


def _print_image(image: Image, reports: Sequence[ImageReport], users: Sequence[str]) -> None:
    from agent.model import wording
    from agent.model.image import Phase

    facts = image.provenance
    rows = [
        ("image", f"{image.version} ({image.id})"),
        ("state", image.state + (f": {image.reason}" if image.reason else "")),
        *(("used by", it) for it in users[:_USERS_SHOWN]),
        ("", f"and {len(users) - _USERS_SHOWN} more" if len(users) > _USERS_SHOWN else None),
        ("provider", f"{image.provider}, {image.provider_image_id or 'not there'}"),
        ("profile", image.profile),
        ("base", image.base),
        ("begun", f"{wording.local(image.created_at)} by {image.created_by}"),
        ("verified", wording.local(image.verified_at) if image.verified_at else "no"),
        ("commit", facts.get("commit")),
        ("package", facts.get("deb")),
        ("log", f"build-agent logs {wording.short_id(facts['bake'])}" if "bake" in facts else None),
    ]
    rows += [(f"checks, {it.ran.replace('_', ' ')}", _checks(it)) for it in reports]
    if durations := facts.get("durations"):
        rows.append(("took", wording.duration(sum(durations.values()))))
        rows += [(f"  {it}", wording.duration(durations[it])) for it in Phase if it in durations]
    for name, value in rows:
        if value:
            click.echo(f"{name:<19} {wording.one_line(str(value))}")


def _checks(report: ImageReport) -> str:
    failed = report.failed_checks
    count = len(report.report.get("checks", ()))
    return f"{count - len(failed)} of {count} passed" + (f"; not: {', '.join(failed)}" if failed else "")


def _print_differences(old: Image, new: Image, differences: Sequence[Difference]) -> None:
    from agent.cli import table

    columns = [
        table.Column("what"),
        table.Column("name", is_elastic=True),
        table.Column(old.version, is_elastic=True),
        table.Column(new.version, is_elastic=True),
    ]
    table.show(columns, [[it.kind, it.name, it.before or "-", it.after or "-"] for it in differences])


def _print_swept(swept: Swept) -> None:
    from agent.model import wording

    if swept.removed:
        click.echo(f"{wording.count(len(swept.removed), 'thing')} removed")
    else:
        click.echo("nothing was left")
    for what in swept.unknown:
        click.echo(f"left alone, unknown to this database: {what}", err=True)
