"""The page in a real browser: what moves when a reader touches it, and nothing in the console."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from dq_deploy.report.data import ReportData
from dq_deploy.report.page import render
from tests.browser import Open, cut_text, resized
from tests.report.conftest import ATTACK, Written, report_data


def one(page: Any, selector: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, selector)


def count(page: Any, selector: str) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, selector))


def facts(page: Any) -> dict[str, str]:
    """What the panel says about the chosen layer and timestep."""
    pairs = "return [...document.querySelectorAll('.panel dt')].map((term) => [term.textContent, term.nextSibling.textContent])"
    return dict(page.execute_script(pairs))


def pixels(page: Any) -> str:
    return page.execute_script("return document.querySelector('.map canvas').toDataURL()")


@pytest.fixture
def shown(open_page: Open, written: Written) -> Any:
    page = open_page(written.path)
    # The panel's charts are drawn in the frame after.
    WebDriverWait(page, 10).until(lambda _: count(page, ".panel .chart svg") > 0)
    return page


def test_the_slider_divides_every_pair(shown: Any) -> None:
    slider = one(shown, "#cut")
    clip = "return getComputedStyle(document.querySelectorAll('.frame img')[{}]).clipPath"
    assert count(shown, ".frame") == 3
    assert shown.execute_script(clip.format(3)) == "inset(0px 0px 0px 50%)"
    slider.send_keys(Keys.HOME)
    assert [shown.execute_script(clip.format(i)) for i in (1, 3, 5)] == ["inset(0px 0px 0px 0%)"] * 3
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown.execute_script(clip.format(1)) == "inset(0px 0px 0px 1%)"
    assert slider.get_attribute("aria-valuetext") == "1 % float"
    one(shown, "#difference").click()
    assert shown.execute_script("return getComputedStyle(document.querySelectorAll('.frame img')[1]).mixBlendMode") == "difference"
    assert not slider.is_enabled()


def test_dragging_on_a_picture_moves_the_line(shown: Any) -> None:
    from selenium.webdriver import ActionChains

    frame = one(shown, ".frame")
    shown.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", frame)
    ActionChains(shown).move_to_element_with_offset(frame, frame.size["width"] // 4, 0).click_and_hold().release().perform()
    assert abs(int(float(one(shown, "#cut").get_attribute("value"))) - 75) <= 2


def test_a_layer_and_a_timestep_are_picked_from_the_lists(shown: Any, written: Written) -> None:
    data = written.data
    before = pixels(shown)
    Select(one(shown, "#layer")).select_by_visible_text(data.layers[2].name)
    Select(one(shown, "#timestep")).select_by_index(3)
    layer, quantizer = data.layers[2], data.layers[2].quantizers[0]
    assert layer.output_db is not None
    assert layer.output_db[3] is not None
    table = data.tables[quantizer]
    assert one(shown, ".panel h3").text == layer.name
    told = facts(shown)
    assert told["output against float"] == f"{layer.output_db[3]:.1f} dB"
    assert float(told["scale"]) == pytest.approx(table.scales[3], rel=1e-4)
    assert told["zero-point"].replace("−", "-") == str(table.zero_points[3])
    assert count(shown, ".panel tr.chosen") == 1
    assert count(shown, ".panel tbody tr") == len(data.timesteps)
    assert pixels(shown) != before


def test_the_map_is_picked_by_keys_and_pointer(shown: Any, written: Written) -> None:
    names = [layer.name for layer in written.data.layers]
    Select(one(shown, "#layer")).select_by_index(0)
    Select(one(shown, "#timestep")).select_by_index(0)
    one(shown, ".map canvas").send_keys(Keys.ARROW_DOWN)
    one(shown, ".map canvas").send_keys(Keys.ARROW_RIGHT)
    one(shown, ".map canvas").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_UP)
    assert one(shown, ".panel h3").text == names[0]
    one(shown, ".map canvas").send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert one(shown, ".panel h3").text == names[1]
    assert Select(one(shown, "#timestep")).first_selected_option.text == f"{written.data.timesteps[1]:g}"
    script = """
        const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
        const at = { clientX: box.right - 3, clientY: box.top + (box.height - 34) * (2.5 / arguments[0]), bubbles: true };
        canvas.dispatchEvent(new PointerEvent("pointermove", at));
        canvas.dispatchEvent(new MouseEvent("click", at));
    """
    shown.execute_script(script, len(names))
    assert one(shown, ".panel h3").text == names[2]
    assert Select(one(shown, "#timestep")).first_selected_option.text == f"{written.data.timesteps[-1]:g}"
    assert names[2] in one(shown, "#tip").text


def test_the_map_shows_other_measures_and_orders(shown: Any, written: Written) -> None:
    seen = [pixels(shown)]
    for measure in ("rounding", "octaves"):
        shown.execute_script("arguments[0].click()", one(shown, f"input[value={measure}]"))
        seen.append(pixels(shown))
    shown.execute_script("arguments[0].click()", one(shown, "input[value=output]"))
    assert pixels(shown) == seen[0]
    Select(one(shown, "#order")).select_by_value("worst")
    seen.append(pixels(shown))
    assert len(set(seen)) == 4
    worst = min(written.data.layers, key=lambda layer: min(layer.output_db or [0.0]))
    one(shown, ".map canvas").send_keys(*[Keys.ARROW_UP] * len(written.data.layers))
    assert one(shown, ".panel h3").text == worst.name


def test_charts_are_drawn_at_the_width_there_is(shown: Any) -> None:
    width = "return document.querySelector('[data-part=snr] svg[role=img]').getAttribute('width')"
    wide = int(shown.execute_script(width))
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True})
    WebDriverWait(shown, 10).until(lambda _: int(shown.execute_script(width)) < 390 < wide)
    # No section is wider than a phone: wide tables scroll by themselves.
    assert shown.execute_script("return document.documentElement.scrollWidth") == 390


def test_the_map_follows_the_colour_scheme(shown: Any) -> None:
    light = pixels(shown)
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    WebDriverWait(shown, 10).until(lambda _: pixels(shown) != light)
    assert shown.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_every_section_has_a_link_and_every_part_is_drawn(shown: Any, written: Written) -> None:
    links = shown.execute_script("return [...document.querySelectorAll('nav a')].map((link) => link.getAttribute('href'))")
    assert links == ["#pictures", "#result", "#timesteps", "#layers", "#dilation", "#latency", "#made"]
    empty = (
        "return [...document.querySelectorAll('[data-part]')].filter((part) => !part.querySelector('svg[role=img], canvas, img')).length"
    )
    assert shown.execute_script(empty) == 0
    assert shown.execute_script("return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length") == 0


def test_names_do_not_become_markup(open_page: Open, attacked: ReportData, tmp_path: Path) -> None:
    (tmp_path / "attacked.html").write_text(render(attacked))
    page = open_page(tmp_path / "attacked.html")
    WebDriverWait(page, 10).until(lambda _: count(page, ".panel .chart svg") > 0)
    for layer in range(2):
        Select(one(page, "#layer")).select_by_index(layer)
    assert one(page, "h1").text == f"Title {ATTACK}"
    assert one(page, ".panel h3").text == f"second {ATTACK}"
    assert facts(page)[f"engine {ATTACK}"] == f"fp16: reason {ATTACK}"
    assert page.execute_script("return window.attacked") is None
    assert count(page, "b") == 0
    assert count(page, "img") == 4
    # The tips are text too.
    page.execute_script(
        "for (const node of document.querySelectorAll('.chart circle, .chart g')) node.dispatchEvent(new PointerEvent('pointermove'))"
    )
    assert count(page, "#tip b") == 0


@pytest.mark.parametrize("timesteps", [1, 100])
def test_any_number_of_timesteps_and_layers_is_drawn(open_page: Open, tmp_path: Path, timesteps: int) -> None:
    steps = [10.0 * i for i in range(timesteps)]
    layer = {"op": "linear", "macs": 1, "weight_bits": 4, "activation_bits": 16, "quantizers": []}
    layers = [{**layer, "name": f"layer.{i}", "output_db": [30.0 + i] * timesteps} for i in range(300 // timesteps)]
    snr = [{"name": "PyTorch", "timesteps": steps, "snr_db": [30.0] * timesteps, "role": "reference"}]
    (tmp_path / "page.html").write_text(render(ReportData.model_validate({"timesteps": steps, "layers": layers, "snr": snr})))
    page = open_page(tmp_path / "page.html")
    assert count(page, ".map canvas") == 1
    assert facts(page)["activations"] == "float"
    assert facts(page)["output against float"] == "30.0 dB"


@pytest.mark.parametrize("width", [1300, 420])
def test_no_text_is_cut(open_page: Open, tmp_path: Path, width: int) -> None:
    data = report_data("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q")
    (tmp_path / "report.html").write_text(render(data))
    page = resized(open_page(tmp_path / "report.html"), width)
    WebDriverWait(page, 10).until(lambda _: count(page, ".panel .chart svg") > 0)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.execute_script("const made = document.querySelector('#made .scroll'); return made.scrollWidth - made.clientWidth") <= 0
    assert cut_text(page) == []
