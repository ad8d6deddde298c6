{{/*
Environment of a container that runs Fettle. Takes root, job (name of the Job, empty while its hash is made) and role:
download, check, train, test or data. extraEnv replaces entries of the same name, since Helm 4 applies on the server's side,
which refuses duplicates. The data pod, in which `fettle download` can be called by hand, has none of extraEnv, which may
hold secrets, nor the token.
*/}}
{{- define "fettle.env" -}}
{{- $values := .root.Values -}}
{{- $cache := printf "%s/cache" $values.storage.mountPath -}}
{{- $env := list
  (dict "name" "HOME" "value" "/tmp")
  (dict "name" "HF_HOME" "value" (printf "%s/huggingface" $cache))
  (dict "name" "XDG_CACHE_HOME" "value" $cache) -}}
{{- if ne .role "data" -}}
{{- $env = append $env (dict "name" "FETTLE_TERMINATION_MESSAGE_PATH" "value" "/dev/termination-log") -}}
{{- $env = append $env (dict "name" "OMP_NUM_THREADS" "value" (include "fettle.threads" .)) -}}
{{- end -}}
{{- if has .role (list "download" "data") -}}
{{- with $values.hub.endpoint -}}{{- $env = append $env (dict "name" "HF_ENDPOINT" "value" .) -}}{{- end -}}
{{- if $values.hub.offline -}}{{- $env = append $env (dict "name" "HF_HUB_OFFLINE" "value" "1") -}}{{- end -}}
{{- if and (eq .role "download") (include "fettle.tokenSecret" .root) -}}
{{- $env = append $env (dict "name" "HF_TOKEN_PATH" "value" "/etc/fettle-hub/token") -}}
{{- end -}}
{{- range $name, $value := dict "http" $values.proxy.httpProxy "https" $values.proxy.httpsProxy "no" $values.proxy.noProxy -}}
{{- if $value -}}
{{- $env = append $env (dict "name" (printf "%s_PROXY" (upper $name)) "value" $value) -}}
{{- $env = append $env (dict "name" (printf "%s_proxy" $name) "value" $value) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{/* Everything has been fetched, so no rank asks the hub again, and none needs the token. */}}
{{- $env = append $env (dict "name" "HF_HUB_OFFLINE" "value" "1") -}}
{{- if eq $values.device "hpu" -}}
{{/* Graphs are compiled for minutes: a restart finds them on the volume. Path, delete at start, MiB, on NFS. */}}
{{- $env = append $env (dict "name" "PT_HPU_RECIPE_CACHE_CONFIG" "value" (printf "%s/hpu-recipes,false,8192,true" $cache)) -}}
{{- $env = append $env (dict "name" "HABANA_LOGS" "value" "/tmp/habana_logs") -}}
{{- end -}}
{{- end -}}
{{- if and (eq $values.kind "Job") (gt (int $values.nodes) 1) (has .role (list "check" "train")) -}}
{{- $env = append $env (dict "name" "WORLD_SIZE" "value" (toString (int $values.nodes))) -}}
{{- $env = append $env (dict "name" "MASTER_ADDR" "value" (printf "%s-0.%s" .job (include "fettle.fullname" .root))) -}}
{{- end -}}
{{- $extraEnv := ternary list $values.extraEnv (eq .role "data") -}}
{{- $extra := list -}}
{{- range $extraEnv -}}{{- $extra = append $extra .name -}}{{- end -}}
{{- $all := list -}}
{{- range $env -}}{{- if not (has .name $extra) -}}{{- $all = append $all . -}}{{- end -}}{{- end -}}
{{- concat $all $extraEnv | toYaml -}}
{{- end -}}

{{/* CPUs and memory of a container that runs Fettle: the run's, or those of the test. Takes root and role. */}}
{{- define "fettle.amounts" -}}
{{- $own := .root.Values.resources -}}
{{- $test := ternary .root.Values.test.resources dict (eq (toString .role) "test") -}}
{{- dict "cpu" (toString (default $own.cpu $test.cpu)) "memory" (toString (default $own.memory $test.memory)) | toJson -}}
{{- end -}}

{{/* Threads a process: the container's CPUs, rounded up, shared by its processes. Takes root and role. */}}
{{- define "fettle.threads" -}}
{{- $cpu := (include "fettle.amounts" . | fromJson).cpu -}}
{{- $cores := ternary (divf (trimSuffix "m" $cpu) 1000) (float64 (trimSuffix "m" $cpu)) (hasSuffix "m" $cpu) -}}
{{- max 1 (div (ceil $cores) (ternary 1 (int .root.Values.accelerators) (eq .role "test"))) -}}
{{- end -}}

{{/* Requests equal to limits. Takes root, role, and cards: how many. */}}
{{- define "fettle.resources" -}}
{{- $values := .root.Values -}}
{{- $test := eq (toString .role) "test" -}}
{{- $amounts := include "fettle.amounts" . | fromJson -}}
{{- if gt (int .cards) 0 -}}
{{- if or (not $test) (eq $values.device "hpu") -}}
{{- with $values.resources.hugepages2Mi -}}{{- $_ := set $amounts "hugepages-2Mi" . -}}{{- end -}}
{{- end -}}
{{- $resource := default (get (dict "cuda" "nvidia.com/gpu" "hpu" "habana.ai/gaudi") $values.device) $values.resources.accelerator -}}
{{- if ne $values.device "cpu" -}}{{- $_ := set $amounts $resource (int .cards) -}}{{- end -}}
{{- if not $test -}}{{- $amounts = merge $amounts $values.resources.extra -}}{{- end -}}
{{- end -}}
{{- dict "requests" $amounts "limits" $amounts | toYaml -}}
{{- end -}}

{{/* What every pod of the release has. */}}
{{- define "fettle.podCommon" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end -}}

{{/* "true" if the volume can be used on one node only, so that all pods of a release have to be on it. */}}
{{- define "fettle.oneNode" -}}
{{- if not (has "ReadWriteMany" .Values.storage.accessModes) -}}true{{- end -}}
{{- end -}}

{{/*
The user's affinity, and where the volume is for one node: the node of the release's pods. Takes root and component.

Required affinity to pods of the same labels lets the first of them go anywhere (the scheduler counts the pod itself if it
finds no other), and all that come later to its node alone. So who comes first decides: on CPUs any may. Cards, though, are
on few nodes, and free on fewer: there the training pod has to choose, and the small pods, which would be the first since
they need no card, match training pods alone and wait for one. Not while the run is suspended, which is when files are
uploaded ahead, or are looked at after the end. TensorBoard follows the data pod too, so that it can come back afterwards.
*/}}
{{- define "fettle.affinity" -}}
{{- $affinity := deepCopy .root.Values.affinity -}}
{{- if include "fettle.oneNode" .root -}}
{{- $selector := dict "matchLabels" (include "fettle.selectorLabels" .root | fromYaml) -}}
{{- if and (ne .root.Values.device "cpu") (not .root.Values.suspend) (has .component (list "data" "tensorboard")) -}}
{{- $leaders := ternary (list "train" "data") (list "train") (eq .component "tensorboard") -}}
{{- $_ := set $selector "matchExpressions" (list (dict "key" "app.kubernetes.io/component" "operator" "In" "values" $leaders)) -}}
{{- end -}}
{{- $term := dict "labelSelector" $selector "topologyKey" "kubernetes.io/hostname" -}}
{{- $pods := default dict $affinity.podAffinity -}}
{{- $required := default list $pods.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $_ := set $pods "requiredDuringSchedulingIgnoredDuringExecution" (append $required $term) -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{- if $affinity -}}{{- toYaml $affinity -}}{{- end -}}
{{- end -}}

{{/* Where a pod may run. Takes root and component: train, test, data or tensorboard. */}}
{{- define "fettle.scheduling" -}}
{{- $keys := list "nodeSelector" "tolerations" -}}
{{- if has .component (list "train" "test") -}}{{- $keys = concat $keys (list "priorityClassName" "runtimeClassName") -}}{{- end -}}
{{- range $key := $keys }}
{{- with get $.root.Values $key }}
{{ $key }}:
{{- if kindIs "string" . }} {{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- with include "fettle.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "fettle.volumes" -}}
- name: data
  persistentVolumeClaim:
    claimName: {{ include "fettle.claimName" . }}
- name: config
  configMap:
    name: {{ include "fettle.fullname" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.scratchSize }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.shmSize }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fettle.volumeMounts" -}}
- name: data
  mountPath: {{ .Values.storage.mountPath }}
- name: config
  mountPath: /etc/fettle
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
One container that runs Fettle. Takes root, job, name, role (the command, and what `fettle.env` makes of it), cards, and
command and args if they are others.
*/}}
{{- define "fettle.container" -}}
name: {{ .name }}
image: {{ include "fettle.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- with .command }}
command: {{ toJson . }}
{{- end }}
args: {{ toJson (default (list .role "/etc/fettle/config.json") .args) }}
env:
  {{- include "fettle.env" . | nindent 2 }}
{{- with .root.Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- include "fettle.resources" . | nindent 2 }}
securityContext:
  {{- toYaml .root.Values.containerSecurityContext | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  {{- include "fettle.volumeMounts" .root | nindent 2 }}
{{- end -}}

{{/*
JSON list of the download's arguments. A branch that has moved on is not followed, so that a pod which comes again finds the
model that the run began with. What is a path, and may not be uploaded yet, is none of its business.
*/}}
{{- define "fettle.downloadArgs" -}}
{{- $args := list "download" "/etc/fettle/config.json" "--refresh=false" -}}
{{- range include "fettle.folderOptions" . | fromJsonArray -}}
{{- $value := toString (default "" (get $.Values.config .)) -}}
{{- if and $value (include "fettle.isPath" $value) -}}{{- $args = append $args (printf "--%s=" .) -}}{{- end -}}
{{- end -}}
{{- toJson $args -}}
{{- end -}}

{{/* The pod of every kind of run. Takes root and job. */}}
{{- define "fettle.podTemplate" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $downloads := include "fettle.downloads" $root -}}
{{- $paths := include "fettle.dataPaths" $root | fromJsonArray -}}
metadata:
  labels:
    {{- merge (dict "app.kubernetes.io/component" "train") (include "fettle.selectorLabels" $root | fromYaml) $values.podLabels | toYaml | nindent 4 }}
  annotations:
    checksum/config: {{ include "fettle.config" $root | sha256sum }}
    kubectl.kubernetes.io/default-container: {{ include "fettle.containerName" $root }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "fettle.podCommon" $root | nindent 2 }}
  {{- with include "fettle.scheduling" (dict "root" $root "component" "train") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if ne $values.kind "PyTorchJob" }}
  restartPolicy: Never
  {{- end }}
  terminationGracePeriodSeconds: {{ int $values.terminationGracePeriodSeconds }}
  {{- if and (eq $values.device "hpu") (gt (int $values.accelerators) 1) }}
  # Cards of one machine exchange data through System V shared memory.
  hostIPC: true
  {{- end }}
  {{- if and (eq $values.kind "Job") (gt (int $values.nodes) 1) }}
  subdomain: {{ include "fettle.fullname" $root }}
  {{- end }}
  {{- if or $values.extraInitContainers $paths $downloads $values.check.enabled }}
  initContainers:
    {{- with $values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if $downloads }}
    # Before the wait, so that a token that is refused shows at once.
    - {{ include "fettle.container" (merge (dict "name" "download" "role" "download" "cards" 0 "args" (include "fettle.downloadArgs" $root | fromJsonArray)) .) | nindent 6 | trim }}
        {{- if include "fettle.tokenSecret" $root }}
        - name: hub-token
          mountPath: /etc/fettle-hub
          readOnly: true
        {{- end }}
    {{- end }}
    {{- with $paths }}
    - name: wait-for-data
      image: {{ include "fettle.image" $root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [sh, -c]
      args:
        - |
          {{- $root.Files.Get "files/wait-for-data.sh" | trim | nindent 10 }}
        - wait-for-data
        - {{ int $values.waitForData.timeoutSeconds | quote }}
        - "15"
        - kubectl cp --namespace {{ $root.Release.Namespace }}
        - {{ if $values.dataAccess.enabled }}{{ include "fettle.dataPod" $root }}{{ else }}$(POD_NAME){{ end }}
        - --container {{ if $values.dataAccess.enabled }}data{{ else }}wait-for-data{{ end }}
        {{- toYaml . | nindent 8 }}
      env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
      resources:
        {{- include "fettle.resources" (dict "root" $root "cards" 0) | nindent 8 }}
      securityContext:
        {{- toYaml $values.containerSecurityContext | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      volumeMounts:
        - name: data
          mountPath: {{ $values.storage.mountPath }}
        - name: tmp
          mountPath: /tmp
    {{- end }}
    {{- if $values.check.enabled }}
    # With the cards and the memory of training, which it compares its plan with.
    - {{ include "fettle.container" (merge (dict "name" "check" "role" "check" "cards" $values.accelerators) .) | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  containers:
    - {{ include "fettle.container" (merge (dict "name" (include "fettle.containerName" $root) "role" "train" "cards" $values.accelerators) .) | nindent 6 | trim }}
      {{- if $values.metrics.enabled }}
      ports:
        - name: metrics
          containerPort: {{ int $values.metrics.port }}
          protocol: TCP
      {{- range $probe := list "startupProbe" "livenessProbe" }}
      {{- with get $values $probe }}
      {{ $probe }}:
        httpGet:
          path: /healthz
          port: metrics
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      {{- end }}
  volumes:
    {{- include "fettle.volumes" $root | nindent 4 }}
    {{- if and $downloads (include "fettle.tokenSecret" $root) }}
    - name: hub-token
      secret:
        secretName: {{ include "fettle.tokenSecret" $root }}
        # Readable by fsGroup alone.
        defaultMode: 0440
        items:
          - key: {{ if $values.hub.existingSecret.name }}{{ $values.hub.existingSecret.key }}{{ else }}token{{ end }}
            path: token
    {{- end }}
{{- end -}}
