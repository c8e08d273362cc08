PY := .venv/bin/python

.PHONY: test
.venv/ready:
	dpkg -s python3-venv busybox-static libseccomp2 >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq python3-venv busybox-static libseccomp2; }
	/usr/bin/python3 -m venv .venv
	$(PY) -m pip install -q pytest pytest-timeout hypothesis
	touch $@

test: .venv/ready
	@echo "lanes: unit, root (runtime only); rootless and v2 guest are not built yet"
	PYTHONPATH=src $(PY) -m pytest -q tests/unit tests/real
