"""What a model's guest does when its host is gone, as the real one does."""

from __future__ import annotations

import sys
import time

import pytest

if sys.platform != "linux":
    pytest.skip("the model needs Linux", allow_module_level=True)

from harness.hcs.document import lcow_document
from harness.hcs.service import ExitType
from harness.model.service import ModelComputeService
from harness.uvm import UtilityVm


def test_it_powers_off() -> None:
    with ModelComputeService() as service, boot(service) as vm:
        vm.guest.close()
        assert vm.wait_exit(timeout_s=30)
        assert service.properties(vm.system_id).exit_type is ExitType.GRACEFUL


def test_it_stays_where_its_document_says_so() -> None:
    with ModelComputeService() as service, boot(service, "-s") as vm:
        vm.guest.close()
        deadline = time.monotonic() + 30
        while "is gone, staying" not in vm.console():
            assert time.monotonic() < deadline, vm.console()
            time.sleep(0.005)
        assert vm.running
        service.terminate(vm.system_id)


def boot(service: ModelComputeService, *init_options: str) -> UtilityVm:
    document = lcow_document(owner="test", kernel="", initrd="", init_options=init_options)
    return UtilityVm.boot(service, document, timeout_s=30)
