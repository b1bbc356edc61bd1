"""Bindings × options → Plan. Pure."""

from suture.planning.build import Draft, Identity, build_plan, draft_operations
from suture.planning.ties import settle

__all__ = ["Draft", "Identity", "build_plan", "draft_operations", "settle"]
