"""What a trial of an earlier page found, as far as no other file has a test of it: each fails on that page."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from pages import Site, choose_policy, drawn, measure_slowly, picture, release, set_budget, tab, upload, visit
from playwright.sync_api import Browser, Page, expect

import heatkv


def test_who_waits_for_somebodys_calibration_sees_a_place_and_a_cancel_and_is_served_in_between(
    page: Page, site: Site, browser: Browser
) -> None:
    visit(page, site)
    other = visit(browser.new_context().new_page(), site)
    tab(other, "Calibrate")
    other.locator("#calibrate-prompts textarea").fill("red apple\nblue cat\ngreen tree\n" * 8)
    other.locator("#calibrate-count input[type=number]").fill("24")
    site.model.seconds = 0.25
    other.locator("#calibrate-start").click()
    expect(other.locator("#tab-calibrate, body").first).to_contain_text("of 24 prompts")
    page.locator("#ask .prompt input").fill("green tree")
    page.locator("#ask .seed input").fill("4711")
    page.locator("#ask .draw").click()
    expect(page.locator("#stage .line")).to_contain_text("In the queue: 1 before you")
    expect(page.locator("#stage .cancel")).to_be_visible()
    drawn(page)
    expect(other.locator("#calibrate-cancel")).to_be_enabled()  # it goes on
    site.model.seconds = 0.0
    other.locator("#calibrate-cancel").click()
    expect(other.locator("#calibrate-notice")).to_contain_text("Cancelled")
    other.context.close()


@pytest.mark.parametrize("name", ["Explore", "Methods"])
def test_nothing_shines_through_the_bar_that_stays_on_top(page: Page, site: Site, name: str) -> None:
    visit(page, site)
    tab(page, name)
    page.evaluate("window.scrollTo(0, 500)")
    page.wait_for_timeout(300)
    through = page.evaluate(
        """() => { const bar = document.querySelector('#dial'); const area = bar.getBoundingClientRect();
            const found = [];
            for (let x = area.left + 4; x < area.right; x += 12)
            for (let y = area.top + 4; y < area.bottom - 2; y += 8) {
                const top = document.elementFromPoint(x, y);
                if (!bar.contains(top)) found.push([x, y, top && top.outerHTML.slice(0, 80)]); }
            return found; }"""
    )
    assert through == []
    style = "(node) => getComputedStyle(node).backgroundColor"
    assert not page.locator("#dial .dial").evaluate(style).startswith("rgba(0, 0, 0, 0")


def test_maps_of_a_head_share_one_measure_unless_asked_otherwise(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    page.locator("#headcard").scroll_into_view_if_needed()
    expect(page.locator("#headcard .tile")).to_have_count(6)
    darkest = """(tile) => { const c = tile.querySelector('canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let least = 255; for (let i = 2; i < d.length; i += 4) least = Math.min(least, d[i]); return least; }"""
    shares = [float(text.split()[0]) for text in page.locator("#headcard .tile b").all_inner_texts()]
    shared = [tile.evaluate(darkest) for tile in page.locator("#headcard .tile").all()]
    page.locator("#headcard .stretch input").check()
    stretched = [tile.evaluate(darkest) for tile in page.locator("#headcard .tile").all()]
    assert max(stretched) < 120, "each is dark somewhere"
    assert max(shared) > max(stretched) and abs(min(shared) - min(stretched)) < 8, shares
    page.locator("#headcard .tile").first.click()
    expect(page.locator("#headcard .tile.large")).to_have_count(1)


def test_the_card_is_of_the_head_that_the_map_marks(page: Page, site: Site) -> None:
    visit(page, site, "?head=1.1")
    page.locator("#headmap .detail .field").focus()
    for key in ("ArrowDown", "ArrowDown", "PageDown"):
        page.keyboard.press(key)
    expect(page.locator("#headcard .title")).to_contain_text("Layer 2, head 3")
    expect(page.locator("#headmap .names .on")).to_contain_text("3")
    expect(page.locator("#headmap .readout")).to_contain_text("Layer 2, head 3")


@pytest.mark.parametrize("seed", ["-5", "1.5", "4294967296", "x"])
def test_a_seed_that_is_none_is_said_in_words(page: Page, site: Site, seed: str) -> None:
    visit(page, site)
    before = picture(page, "b")
    page.locator("#ask .seed input").fill(seed)
    page.locator("#ask .draw").click()
    expect(page.locator("#stage .line")).to_contain_text("choose a whole number from 0 to 4294967295")
    expect(page.locator("#stage .line")).to_contain_text(seed)
    assert picture(page, "b") == before and page.locator("#stage figure.b.stale").count() == 1


def test_heatkv_can_be_seen_on_a_published_model_without_a_file(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Published models")
    page.wait_for_function("heatkvPublished.table")
    page.locator("#pub-play").click()
    page.wait_for_function("heatkvPublished.table.policy === 'heatkv' && heatkvPublished.table.kind === 'rank'")
    expect(page.locator("#pub-notice")).to_contain_text("of no model")
    expect(page.locator("#published-policy")).to_contain_text("HeatKV upside down")


def test_what_somebody_is_writing_stays_in_the_field_while_other_things_change(page: Page, site: Site) -> None:
    visit(page, site)
    prompt, before = page.locator("#ask .prompt input"), picture(page, "a")
    page.locator("#dial .policies").select_option("reverse")
    prompt.fill("green tree")
    page.wait_for_function("heatkv.table.policy === 'reverse'")
    set_budget(page, 61)
    release(page)
    page.wait_for_timeout(600)
    expect(prompt).to_have_value("green tree")
    expect(page.locator("#stage figure.b .mark")).to_have_text("another prompt: press Draw")
    page.locator("#ask .draw").click()
    drawn(page)
    assert picture(page, "a") != before and page.evaluate("heatkv.view.prompt") == "green tree"
    page.evaluate("heatkv.set({ prompt: 'red apple' })")
    expect(prompt).to_have_value("red apple")


def test_the_models_own_name_of_a_prompt_does_not_take_what_is_written_after_it(page: Page, site: Site) -> None:
    visit(page, site)
    prompt = page.locator("#ask .prompt input")
    prompt.fill("blue  cat ")
    page.keyboard.press("Enter")
    drawn(page)
    expect(prompt).to_have_value("blue cat")
    prompt.fill("green tr")
    set_budget(page, 63)
    release(page)
    page.wait_for_timeout(600)
    expect(prompt).to_have_value("green tr")


def test_a_seed_that_is_written_stays_and_one_that_is_drawn_is_shown(page: Page, site: Site) -> None:
    visit(page, site)
    seed = page.locator("#ask .seed input")
    seed.fill("33")
    page.locator("#budget-range").focus()
    set_budget(page, 63)
    release(page)
    drawn(page)
    expect(seed).to_have_value("33")
    assert page.evaluate("heatkv.view.seed") == 0
    seed.fill("")
    page.keyboard.press("Enter")
    drawn(page)
    expect(seed).to_have_value(str(page.evaluate("heatkv.view.seed")))


def test_nothing_is_drawn_of_a_policy_whose_table_is_on_its_way(page: Page, site: Site) -> None:
    visit(page, site, "?seed=81")  # drawn by no other test
    page.evaluate("heatkv.view.policy = 'reverse'; heatkv.emit('view')")
    page.wait_for_timeout(500)
    expect(page.locator("#stage .cancel")).to_be_hidden()
    site.model.seconds = 0.4
    page.evaluate("heatkv.emit('want-table')")
    expect(page.locator("#stage figure.b .mark")).to_contain_text("drawing, 1 of 6")
    page.evaluate("heatkv.view.policy = 'random'; heatkv.emit('want-table')")
    expect(page.locator("#stage figure.b .mark")).not_to_contain_text("drawing, 2 of 6")
    site.model.seconds = 0.0
    drawn(page)
    expect(page.locator("#stage figure.b .tag")).to_contain_text("B · Random")


def test_who_is_among_all_heads_stays_there_when_a_picture_comes(page: Page, site: Site) -> None:
    visit(page, site)
    page.locator("#heads .grid button").nth(5).focus()
    page.evaluate("heatkv.emit('colours')")
    assert page.evaluate("document.activeElement.dataset.head") == "1.1"
    page.locator("#heads .order").select_option("type")
    assert page.locator("#heads .grid button").count() == 12


def test_a_held_right_button_forgets_nothing(page: Page, site: Site) -> None:
    visit(page, site)
    box = page.locator("#headmap .detail .field").bounding_box()
    assert box
    for button, count in (("right", 0), ("left", 1)):
        page.mouse.move(box["x"] + 20, box["y"] + 8)
        page.mouse.down(button=button)  # type: ignore[arg-type]
        page.wait_for_timeout(800)
        page.mouse.up(button=button)  # type: ignore[arg-type]
        assert page.evaluate("heatkv.edits.count") == count, button
        page.keyboard.press("Escape")


def test_the_map_as_a_table_says_nothing_of_cells_that_are_decided_token_by_token(page: Page, site: Site) -> None:
    visit(page, site)
    kept = {}
    for policy in ("heatkv", "h2o"):
        choose_policy(page, policy)
        with page.expect_download() as saved:
            page.evaluate("heatkv.emit('save', 'csv')")
        lines = Path(saved.value.path()).read_text().splitlines()
        at = lines[0].split(",").index("kept")
        kept[policy] = {line.split(",")[at] for line in lines[1:]}
    assert kept == {"heatkv": {"0", "1"}, "h2o": {""}}


def test_a_lesson_shows_its_prompt_where_another_was_being_written(page: Page, site: Site) -> None:
    visit(page, site)
    prompt = page.locator("#ask .prompt input")
    prompt.fill("green tr")
    page.evaluate("heatkv.emit('lesson', 0)")
    expect(page.locator(".lesson .title")).to_be_visible()
    expect(prompt).to_have_value(page.evaluate("heatkv.view.prompt"))
    drawn(page)


def test_a_lesson_says_that_it_was_counted_otherwise_and_gives_the_slider_back(page: Page, site: Site) -> None:
    visit(page, site, "?budget=62")
    content = heatkv.plan(site.scores, 0.5, "reverse").to_json().encode()
    upload(page, "#upload-schedule", "schedule.json", content)
    page.wait_for_function("heatkv.fixed")
    page.evaluate("heatkv.emit('lesson', 0)")
    expect(page.locator(".lesson .other")).to_contain_text("your schedule file")
    page.locator("#uploaded-remove").click()
    page.wait_for_function("!heatkv.fixed")
    expect(page.locator(".lesson .other")).to_be_hidden()
    page.locator(".lesson .leave").click()
    assert page.evaluate("heatkv.budget") == 62
    page.evaluate("heatkv.emit('lesson', 0)")
    expect(page.locator(".lesson .title")).to_be_visible()
    expect(page.locator(".lesson .other")).to_be_hidden()


def test_a_link_from_a_lesson_opens_with_the_pictures_that_it_was_copied_with(page: Page, site: Site) -> None:
    visit(page, site, "?lesson=1")
    expect(page.locator(".lesson .title")).to_be_visible()
    drawn(page)
    assert "lesson=1" in page.evaluate("heatkv.link(true)")
    set_budget(page, 64)
    release(page)
    link = page.evaluate("heatkv.link(true)")
    assert "budget=64" in link and "lesson" not in link
    set_budget(page, 100)
    assert "lesson=1" in page.evaluate("heatkv.link(true)"), "they are the lesson's again"
    page.locator("#dial .policies").select_option("reverse")
    page.wait_for_function("heatkv.tableFits()")
    link = page.evaluate("heatkv.link(true)")
    assert "policy=reverse" in link and "lesson" not in link
    page.locator(".lesson .leave").click()


def test_what_a_lesson_asks_is_not_told_beside_it(page: Page, site: Site) -> None:
    told = page.locator("#headmap .names em, #headcard .kind, #headcard .evidence, #heads .heads")
    visit(page, site)
    expect(page.locator("#headcard .kind")).to_be_visible()
    tab(page, "Learn")
    names = page.locator("#lessons .start b").all_inner_texts()
    page.evaluate("(at) => heatkv.emit('lesson', at)", names.index("Name that head"))
    expect(page.locator(".lesson .title")).to_contain_text("Name that head")
    for part in told.all():
        expect(part).to_have_css("visibility", "hidden")
    page.locator(".lesson .options button").first.click()
    expect(page.locator("#headcard .kind")).to_be_visible()
    right = page.locator(".lesson .options .right").inner_text()
    assert page.locator(".lesson .answer").inner_text().startswith((f"Yes: {right}. ", f"No: {right}. "))
    page.locator(".lesson .leave").click()


def test_all_heads_are_one_stop_of_the_tab_key_and_arrows_move_among_them(page: Page, site: Site) -> None:
    visit(page, site)
    heads = page.locator("#heads .grid button")
    assert heads.evaluate_all("(all) => all.filter((one) => one.tabIndex === 0).length") == 1
    heads.first.focus()
    page.keyboard.press("ArrowRight")
    expect(heads.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(heads.last).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(heads.last).to_be_focused()
    page.keyboard.press("Enter")
    expect(heads.last).to_have_attribute("aria-pressed", "true")
    assert heads.evaluate_all("(all) => all.filter((one) => one.tabIndex === 0).length") == 1


def test_draw_on_another_tab_leads_to_the_pictures(page: Page, site: Site) -> None:
    visit(page, site)
    tab(page, "Learn")
    page.locator("#ask .prompt input").fill("green tree")
    page.locator("#ask .draw").click()
    expect(page.locator("#tab-explore-button")).to_have_attribute("aria-selected", "true")
    drawn(page)
    assert page.evaluate("heatkv.view.prompt") == "green tree"


def test_the_card_of_a_head_follows_the_calibration_in_use(page: Page, site: Site) -> None:
    visit(page, site)
    expect(page.locator("#headcard .source")).to_contain_text("bundled calibration")
    tab(page, "Calibrate")
    page.locator("#calibrate-prompts textarea").fill("green tree")
    page.locator("#calibrate-start").click()
    expect(page.locator("#calibrate-in-use, #tab-calibrate").first).to_contain_text("your calibration, 1 prompt.")
    tab(page, "Explore")
    page.wait_for_function("heatkv.view.source === 'session'")
    expect(page.locator("#headcard .source")).to_contain_text("mean over 1 prompt (your calibration")


def test_a_knock_out_ends_with_the_picture_that_it_is_of(page: Page, site: Site) -> None:
    visit(page, site)
    measure_slowly(page, site)
    page.locator("#ask .prompt input").fill("green tree")
    page.locator("#ask .draw").click()
    expect(page.locator("#headmap .measure")).to_be_visible()
    expect(page.locator("#headmap .knock .text")).to_have_text("")
    site.model.seconds = 0.0
    drawn(page)


def test_a_saved_map_says_whose_schedule_it_shows(page: Page, site: Site) -> None:
    visit(page, site)
    upload(page, "#upload-schedule", "schedule.json", heatkv.plan(site.scores, 0.5, "reverse").to_json().encode())
    page.wait_for_function("heatkv.fixed")
    page.locator("#stage .save summary").click()
    with page.expect_download() as found:
        page.locator("[data-save=map-svg]").click()
    assert found.value.suggested_filename == "tiny-reverse-50.svg"
    assert "your schedule (reverse, 50 %) of the full cache" in Path(found.value.path()).read_text()
