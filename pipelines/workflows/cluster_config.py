"""Settings of the cluster. Connecting to it imports Ray; reading the settings must not."""

from __future__ import annotations

from pydantic import Field

from vlmodel.config import ConfigSection


class ClusterConfig(ConfigSection):
    """Settings of where the job runs."""

    address: str = ""
    """Address of a running cluster ("auto" finds one on this machine); "" uses RAY_ADDRESS, else starts one here."""
    num_cpus: int = Field(0, ge=0)
    """CPUs that a cluster started here declares; 0 is the machine's cores, and at least 8. Many parts only wait, and
    Ray Data gives each of the streams that run at one time a whole number of CPUs, or none."""
    object_store_mb: int = Field(512, ge=80)
    """Object store of a cluster started here."""
