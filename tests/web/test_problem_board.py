"""Problems of the overview: looked for once for all visitors who see the same."""

from __future__ import annotations

from starlette.requests import Request

from streams.web import Dashboard
from streams.web.access import Access
from streams.web.page import Page
from streams.web.problem_board import Problem
from tests.conformance.stage import Stage
from tests.web.visiting import visit


async def test_visitors_who_see_the_same_share_what_was_found(stage: Stage) -> None:
    asked: list[str] = []

    def find(page: Page) -> list[Problem]:
        asked.append(page.access.who)
        return [Problem(1, f"found for {page.language}", page.url("/groups"))]

    def who(request: Request) -> Access:
        return Access(read=True, who=request.headers["x-user"])

    app = stage.app()
    async with app.connected():
        dashboard = Dashboard(app, access=who)
        dashboard.site = dashboard.site._replace(problem_finders=(find,))
        async with visit(dashboard) as visitor:
            for number in range(60):  # more than there are kinds of visitors kept
                seen = await visitor.get("/", headers={"x-user": f"user-{number}"})
                assert "found for en" in seen.text
                await visitor.get(f"/?lang=no-{number}", headers={"x-user": "user-1"})
            # Each looks again after some seconds; none of them because the others came.
            assert len(asked) < 30
            before = len(asked)
            japanese = {"x-user": "user-1", "accept-language": "ja"}
            seen = await visitor.get("/", headers=japanese)
            assert "found for ja" in seen.text
            seen = await visitor.get("/?lang=ja", headers={"x-user": "user-1"})
            assert [href for text, href in seen.links if "found for ja" in text] == [
                "/groups?lang=ja"
            ]
            assert len(asked) >= before + 2
