"""Every action as a person does it: from the page that offers it, through its confirmation, to the
page that says that it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from playwright.sync_api import expect

from tests.conformance.stage import PATIENCE
from tests.web.browser.tab import Tab


@dataclass(frozen=True)
class Act:
    """An action.

    :param action: the path that its form is sent to.
    :param page: where it is offered; names end as those of the shop do.
    :param links: selectors of links that are followed from there.
    :param fill: what is typed, by the field's selector; ``True`` ticks it.
    :param form: what is added to the form's selector, where the page has several.
    """

    action: str
    page: str
    links: tuple[str, ...] = ()
    fill: dict[str, str | bool] = field(default_factory=dict)
    form: str = ""


LETTERS = "/dead/show?name=orders{suffix}.billing{suffix}.dead"
KEYS = "/keys?topic=orders{suffix}&group=stock{suffix}"
KEY = "tr:has-text('%s') a[href*='/keys/show']"

ACTS = (
    Act("/publish", "/publish?topic=reminders{suffix}", fill={"textarea[name=value]": "buy milk"}),
    Act("/groups/reset", "/groups/show?group=reports{suffix}", fill={"input[name=to]": "-3"}),
    Act("/groups/delete", "/groups/show?group=reports{suffix}"),
    Act(
        "/dead/edit", LETTERS, ("a[href*='/dead/letter']",),
        fill={"textarea": '{"order":"o-1","customer":"elif","cents":1,"items":[]}'},
    ),
    Act(
        "/dead/retry", LETTERS,
        fill={"tbody input[name=letter] >> nth=0": True},
    ),
    Act(
        "/dead/drop", LETTERS,
        fill={"tbody input[name=letter] >> nth=0": True},
    ),
    Act("/keys/drop", KEYS, (KEY % "佐藤",)),
    Act(
        "/keys/edit", KEYS, (KEY % "chidi",),
        fill={"textarea": '{"order":"o-1","customer":"chidi","cents":1,"items":["cup-1"]}'},
    ),
    Act(
        "/keys/retry", KEYS,
        fill={"tbody input[name=letter] >> nth=0": True},
    ),
    Act(
        "/delayed/cancel", "/delayed/show?topic=delays{suffix}",
        fill={"tbody input[name=message] >> nth=0": True},
    ),
    Act("/processors/pause", "/processors/show?name=remind"),
    Act("/processors/resume", "/processors/show?name=remind"),
    Act("/sagas/resume", "/sagas", ("a:has-text('saga-9')",)),
    Act("/sagas/abandon", "/sagas", ("a:has-text('saga-9')",)),
    Act("/outbox/retry", "/outbox", ("a[href*='/outbox/row']",)),
    Act("/views/rebuild", "/views", ("a:has-text('balances')",)),
)  # fmt: skip
"""In this order: what one of them does, the next may need."""

ELSEWHERE = {"/views/drop", "/views/promote", "/views/retry"}
"""Actions that this shop gives no occasion for: those of ``test_views.py``, for which it takes a
second version, and a document that stands still."""


def perform(tab: Tab, act: Act, suffix: str = "") -> None:
    """Do it, and see that it says that it is done."""
    first = f"main {[*act.links, *act.fill, 'h1'][0]}"

    def is_offered() -> bool:
        tab.get(act.page.format(suffix=suffix))
        return tab.find(first).count() > 0

    tab.until(is_offered, f"{act.action} is offered: {first}")
    for link in act.links:
        tab.find(f"main {link}").first.click()
    expect(tab.find("main h1")).to_be_visible()
    tab.script("document.querySelectorAll('main details').forEach((each) => { each.open = true; })")
    for selector, what in act.fill.items():
        found = tab.find(f"main {selector}").first
        if what is True:
            found.check()
        else:
            found.fill(str(what))
    own = f"form[action$='{act.action}']{act.form} button:not([formaction])"
    tab.find(f"main {own}, main button[formaction$='{act.action}']").first.click()
    confirm = tab.find("form.confirm")
    good = tab.find("main .notice.good")
    bad = tab.find("main .notice.bad")
    expect(confirm.or_(good).or_(bad).first).to_be_visible(timeout=PATIENCE * 1000)
    assert not bad.count(), f"{act.action}: {bad.first.text_content()}"
    if confirm.count():
        if tab.find("#confirm").count():
            label = tab.find("label[for=confirm]").text_content() or ""
            tab.find("#confirm").fill("".join(each for each in label if each.isdigit()))
        confirm.locator("button").click()
    expect(good).to_be_visible(timeout=PATIENCE * 1000)
    tab.check()
