"""Counts as Prometheus reads them."""

from __future__ import annotations

from klein_cli.serve.metrics import Metrics


def test_a_histogram_counts_up_and_ends_with_all() -> None:
    metrics = Metrics()
    for seconds in (0.01, 0.05, 0.07, 1000.0):
        metrics.observe("klein_wait_seconds", seconds)
    lines = metrics.text({}).splitlines()
    assert 'klein_wait_seconds_bucket{le="0.05"} 2' in lines
    assert 'klein_wait_seconds_bucket{le="0.1"} 3' in lines
    assert 'klein_wait_seconds_bucket{le="300"} 3' in lines
    assert 'klein_wait_seconds_bucket{le="+Inf"} 4' in lines
    assert "klein_wait_seconds_count 4" in lines


def test_a_label_cannot_break_out_of_its_quotes() -> None:
    metrics = Metrics()
    metrics.count("klein_requests_total", route='a"b\\c\nd', code="200")
    assert 'route="a\\"b\\\\c\\nd"' in metrics.text({})
    assert metrics.value("klein_requests_total", route='a"b\\c\nd', code="200") == 1
