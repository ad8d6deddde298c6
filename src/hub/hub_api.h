// SPDX-License-Identifier: Apache-2.0
/// The hub's web interface: what a repository holds, and what its refusals mean.
#pragma once

#include <string>

#include "base/error.h"
#include "hub/cache.h"
#include "hub/http.h"

namespace fettle::hub {

/// What the environment says about the hub, by huggingface_hub's names.
struct HubSettings {
  std::string endpoint;      ///< HF_ENDPOINT, without a slash at its end
  std::string token;         ///< empty: none
  std::string token_source;  ///< the variable or file that it is from, for messages
};

/// HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE.
bool is_offline();

/// The token is HF_TOKEN, HUGGING_FACE_HUB_TOKEN, or the content of HF_TOKEN_PATH or $HF_HOME/token, without white
/// space around it. Throws Error{kPermission} for one with white space, control or other characters inside that no
/// header may have; the message does not show it. Throws Error{kConfig} for an endpoint that is no URL.
HubSettings hub_settings();

struct Repository {
  RepositoryKind kind = RepositoryKind::kModel;
  std::string name;
  std::string revision;  ///< branch, tag or commit
  std::string option;    ///< that names it, for messages
};

class HubApi {
 public:
  HubApi(HubSettings settings, Repository repository);

  /// The commit that the revision stands for now. This and `list` throw Error: kPermission (no token, a refused one, a
  /// gated repository), kNoInput (no such repository or revision), kUnavailable (no answer, or not a hub's).
  std::string find_commit();

  /// All files at a commit.
  Listing list(const std::string& commit);

  [[nodiscard]] std::string file_url(const std::string& commit, const std::string& path) const;
  [[nodiscard]] const std::string& token() const { return settings_.token; }

  /// What an answer that is no success means; `file`: what was asked for, empty for the repository itself.
  [[nodiscard]] Error refusal(const HttpResponse& response, const std::string& file) const;

 private:
  HttpResponse get(const std::string& url);
  [[nodiscard]] std::string api_url() const;
  [[nodiscard]] std::string page() const;
  [[nodiscard]] Error strange(const std::string& what) const;
  [[nodiscard]] Error refused_token(bool is_gated) const;
  [[nodiscard]] Error refused_elsewhere(const HttpResponse& response) const;
  [[nodiscard]] std::string subject() const;

  HubSettings settings_;
  Repository repository_;
  HttpClient client_;
};

}  // namespace fettle::hub
