"""A browser for the pages of reports."""

from collections.abc import Iterator

import pytest

from tests.helpers.browser import Browser


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(opened: Browser) -> Browser:
    opened.events.clear()
    return opened
