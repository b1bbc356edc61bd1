"""Bindings × options → Plan. Pure."""

from suture.planning.build import Draft, Identity, build_plan, draft_operations
from suture.planning.rewrite import plan_adapter
from suture.planning.ties import settle

__all__ = ["Draft", "Identity", "build_plan", "draft_operations", "plan_adapter", "settle"]
